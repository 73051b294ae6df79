//go:build ignore

/* floor makes the system calls of one attach as bindgate-helper makes them, and checks nothing: what the work itself costs the kernel. It is run as root:
 * floor PID SOURCE PATH LEDGER AUDIT, where PATH is in the container.
 *
 * floor peak UID PROGRAM runs a program as a user, and tells on stderr how many KiB of memory it had at most. The parent of a program must be small for that: its own peak counts as the program's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIDFD_GET_MNT_NAMESPACE _IO(0xff, 3)
#define NS_GET_USERNS _IO(0xb7, 1)
#define NS_GET_MNTNS_ID _IOR(0xb7, 5, unsigned long long)

static long must(const char *what, long r)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static void set(int fd, const char *path, unsigned flags, struct mount_attr a)
{
	must("mount_setattr", syscall(SYS_mount_setattr, fd, path, flags, &a, sizeof a));
}

static int tree, top;

static int child(void *unused)
{
	int fd = syscall(SYS_open_tree, AT_FDCWD, "0", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (fd < 0 || dup3(fd, tree, O_CLOEXEC) < 0)
		_exit(1);
	_exit(0);
}

static int peak(int id, char *program)
{
	int status, kid = must("fork", fork());
	if (!kid) {
		must("setgroups", setgroups(0, NULL));
		must("setgid", setgid(id));
		must("setuid", setuid(id));
		must("exec", execve(program, (char *[]){program, NULL}, (char *[]){NULL}));
	}
	struct rusage used;
	must("wait", wait4(kid, &status, 0, &used));
	fprintf(stderr, "%ld\n", used.ru_maxrss);
	return status != 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "peak"))
		return peak(atoi(argv[2]), argv[3]);
	char path[256], buf[4096];
	unsigned long long id;
	struct stat st;
	struct statfs fs;
	if (argc != 6)
		return 64;
	must("setresuid", setresuid(0, 0, 0));
	must("dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	int proc = must("/proc", open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
	must("statfs", fstatfs(proc, &fs));
	int ledger = must("ledger", open(argv[4], O_PATH | O_DIRECTORY | O_CLOEXEC));
	int audit = must("audit", open(argv[5], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640));
	for (int n = 0; n <= 40; n++)
		must("bounding set", prctl(PR_CAPBSET_DROP, n, 0, 0, 0));
	must("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must("read", read(0, buf, sizeof buf));

	int pid = atoi(argv[1]), pidfd = must("pidfd_open", syscall(SYS_pidfd_open, pid, 0));
	int ns = must("namespace", ioctl(pidfd, PIDFD_GET_MNT_NAMESPACE, 0));
	must("namespace id", ioctl(ns, NS_GET_MNTNS_ID, &id));
	must("user namespace", ioctl(ns, NS_GET_USERNS));
	snprintf(path, sizeof path, "%d/cgroup", pid);
	int fd = must("cgroup", openat(proc, path, O_RDONLY | O_CLOEXEC));
	must("read", read(fd, buf, sizeof buf));
	snprintf(path, sizeof path, "%d/root", pid);
	int root = must("root", openat(proc, path, O_PATH | O_DIRECTORY | O_CLOEXEC));
	must("stat", fstat(root, &st));
	int source = must("source", open(argv[2], O_PATH | O_NOFOLLOW | O_CLOEXEC));
	int point = must("path", openat(root, argv[3] + 1, O_PATH | O_NOFOLLOW | O_CLOEXEC));
	tree = must("open_tree", syscall(SYS_open_tree, source, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH));
	set(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, (struct mount_attr){.propagation = MS_PRIVATE});

	must("unshare", unshare(CLONE_FS));
	must("setns", setns(ns, CLONE_NEWNS));
	must("unshare", unshare(CLONE_NEWNS));
	set(AT_FDCWD, "/", AT_RECURSIVE, (struct mount_attr){.propagation = MS_PRIVATE});
	int tmpfs = must("fsopen", syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
	must("fsconfig", syscall(SYS_fsconfig, tmpfs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	top = must("fsmount", syscall(SYS_fsmount, tmpfs, FSMOUNT_CLOEXEC, 0));
	must("move_mount", syscall(SYS_move_mount, top, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
	must("fchdir", fchdir(top));
	must("chroot", chroot("."));
	must("mkdir", mkdirat(top, "0", 0700));
	must("move_mount", syscall(SYS_move_mount, tree, "", top, "0", MOVE_MOUNT_F_EMPTY_PATH));
	set(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, (struct mount_attr){.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV});
	static char stack[16384];
	int status, kid = must("clone", clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS, NULL));
	must("wait", waitpid(kid, &status, __WALL));
	if (status)
		return 1;

	must("audit", write(audit, buf, 350));
	int record = must("record", openat(ledger, ".record", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	must("write", write(record, buf, 340));
	must("fsync", fsync(record));
	close(record);
	must("rename", renameat(ledger, ".record", ledger, "record"));
	must("unshare", unshare(CLONE_FS));
	must("setns", setns(ns, CLONE_NEWNS));
	must("move_mount", syscall(SYS_move_mount, tree, "", point, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
	must("audit", write(audit, buf, 330));
	return write(1, buf, 74) < 0;
}
