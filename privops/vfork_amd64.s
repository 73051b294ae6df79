#include "textflag.h"

// func vfork(trap, flags uintptr) (pid uintptr, errno syscall.Errno)
TEXT ·vfork(SB), NOSPLIT|NOFRAME, $0-32
	MOVQ	flags+8(FP), DI
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVQ	trap+0(FP), AX
	POPQ	R12     // the return address: the child returns first, and what it calls then overwrites it on the stack
	SYSCALL
	PUSHQ	R12
	MOVQ	AX, pid+16(FP)
	MOVQ	$0, errno+24(FP)
	CMPQ	AX, $0xfffffffffffff001
	JCS	done
	NEGQ	AX
	MOVQ	AX, errno+24(FP)
done:
	RET
