//go:build crash

package crash

import "golang.org/x/sys/unix"

const fstatat = unix.SYS_FSTATAT
