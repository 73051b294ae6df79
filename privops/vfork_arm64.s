#include "textflag.h"

// func vfork(trap, flags uintptr) (pid uintptr, errno syscall.Errno)
TEXT ·vfork(SB), NOSPLIT, $0-32
	MOVD	flags+8(FP), R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	trap+0(FP), R8
	SVC
	MOVD	R0, pid+16(FP)
	MOVD	$0, errno+24(FP)
	CMN	$4095, R0
	BCC	done
	NEG	R0, R0
	MOVD	R0, errno+24(FP)
done:
	RET
