/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first part of dist/ktrace-static. It unpacks the image that build_static.py
 * appended and then executes the interpreter in it. The image is unpacked into a
 * tmpfs that is mounted in no namespace and ends with its descriptor. So nothing
 * remains however the process ends, and the process that users see and kill is
 * the collector itself.
 *
 * Without CAP_SYS_ADMIN such a mount is not possible. Then the image is unpacked
 * into a folder in $TMPDIR, and a child removes it after this process has ended.
 *
 * File: this program | tar (ustar) in zstd | length of the zstd (8 bytes) | "KTRACE01"
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <zstd.h>

#define MAGIC "KTRACE01"
#define BLOCK 512
#define ROOT_FD 97 /* high, so that it collides with no other descriptor */

struct trailer {
	uint64_t length;
	char magic[8];
};

struct stream {
	ZSTD_DStream *zstd;
	ZSTD_inBuffer in;
	ZSTD_outBuffer out;
	size_t taken; /* bytes of out that were read */
};

struct ustar {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8];
	char type, link[100], magic[8], owner[32], group[32], major[8], minor[8];
	char prefix[155], pad[12];
};

_Noreturn static void die(const char *what)
{
	dprintf(STDERR_FILENO, "ktrace: cannot unpack itself: %s: %s\n", what, strerror(errno));
	exit(1);
}

_Noreturn static void broken(void)
{
	errno = EBADMSG;
	die("the file is damaged or truncated, copy it again");
}

/*
 * The next opened file would take the number of a closed standard stream. /dev/null with
 * the opposite access mode takes it instead, so that writes fail as on a closed stream.
 */
static void fill_gaps(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

/* Copies the next `size` bytes of the tar to `to` or, if fd >= 0, to that file. */
static void take(struct stream *s, char *to, int fd, size_t size)
{
	while (size) {
		size_t ready = s->out.pos - s->taken;

		if (!ready) {
			size_t before = s->in.pos;

			s->out.pos = s->taken = 0;
			if (ZSTD_isError(ZSTD_decompressStream(s->zstd, &s->out, &s->in)) ||
			    (!s->out.pos && s->in.pos == before))
				broken();
			continue;
		}
		if (ready > size)
			ready = size;
		if (fd < 0)
			memcpy(to, (char *)s->out.dst + s->taken, ready);
		else if (write(fd, (char *)s->out.dst + s->taken, ready) != (ssize_t)ready)
			die("write");
		to += fd < 0 ? ready : 0;
		s->taken += ready;
		size -= ready;
	}
}

/* The tar lists folders before their files and contains no links. */
static void unpack(struct stream *s, int root)
{
	char path[sizeof(((struct ustar *)0)->prefix) + 102], rest[BLOCK];
	struct ustar head;

	_Static_assert(sizeof(head) == BLOCK, "a tar header is one block");
	for (;;) {
		size_t size;
		int fd;

		take(s, (char *)&head, -1, BLOCK);
		if (!head.name[0])
			return;
		if (memcmp(head.magic, "ustar", 5))
			broken();
		snprintf(path, sizeof(path), "%.155s%s%.100s", head.prefix,
			 head.prefix[0] ? "/" : "", head.name);
		if (head.type == '5') {
			if (mkdirat(root, path, 0700))
				die(path);
			continue;
		}
		size = strtoull(head.size, NULL, 8);
		fd = openat(root, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC,
			    strtoul(head.mode, NULL, 8) & 0700);
		if (fd < 0)
			die(path);
		take(s, NULL, fd, size);
		close(fd);
		take(s, rest, -1, (BLOCK - size % BLOCK) % BLOCK);
	}
}

/* Needs v5.2 (commit 93766fbd2696) and the right to mount; else returns -1. */
static int mount_nowhere(void)
{
	int root = -1, fs = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);

	if (fs < 0)
		return -1;
	if (!syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "mode", "0700", 0) &&
	    !syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		root = syscall(SYS_fsmount, fs, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	close(fs);
	return root;
}

static void remove_folder(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (unlinkat(fd, entry->d_name, 0))
			remove_folder(fd, entry->d_name);
	}
	if (dir)
		closedir(dir);
	unlinkat(parent, name, AT_REMOVEDIR);
}

/* Waits until every process with the other end of the pipe has ended, then removes the folder. */
static void watch(const char *folder, int end_of_pipe)
{
	char none;

	setsid();
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_IGN);
	prctl(PR_SET_NAME, "ktrace-cleanup");
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	while (read(end_of_pipe, &none, 1) < 0 && errno == EINTR)
		;
	remove_folder(AT_FDCWD, folder);
	_exit(0);
}

static int folder_with_a_watcher(void)
{
	const char *base = getenv("TMPDIR");
	char folder[PATH_MAX];
	int ends[2];

	snprintf(folder, sizeof(folder), "%s/ktrace-XXXXXX", base && *base ? base : "/tmp");
	if (!mkdtemp(folder))
		die(folder);
	if (pipe(ends))
		die("pipe");
	switch (fork()) {
	case -1:
		rmdir(folder);
		die("fork");
	case 0:
		close(ends[1]);
		watch(folder, ends[0]);
	}
	close(ends[0]); /* the other end stays open as long as this process lives */
	return open(folder, O_RDONLY | O_DIRECTORY);
}

static void open_image(struct stream *s)
{
	struct trailer trailer;
	struct stat st;
	char *file;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("/proc/self/exe (/proc must be mounted)");
	if (fstat(fd, &st))
		die("fstat");
	file = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		die("mmap");
	close(fd);
	memcpy(&trailer, file + st.st_size - sizeof(trailer), sizeof(trailer));
	if (memcmp(trailer.magic, MAGIC, sizeof(trailer.magic)) ||
	    trailer.length > st.st_size - sizeof(trailer))
		broken();
	*s = (struct stream){
		.zstd = ZSTD_createDStream(),
		.in = { file + st.st_size - sizeof(trailer) - trailer.length, trailer.length, 0 },
		.out = { malloc(ZSTD_DStreamOutSize()), ZSTD_DStreamOutSize(), 0 },
	};
	if (!s->zstd || !s->out.dst)
		die("memory");
}

int main(int argc, char **argv)
{
	static char *const unwanted[] = { "LD_LIBRARY_PATH", "LD_PRELOAD",  "PYTHONSTARTUP",
					  "PYTHONINSPECT",   "PYTHONDEBUG", "PYTHONWARNINGS" };
	static char root[32], loader[64], libs[64], python[64], bpf[64], site[64], script[64];
	char **args = calloc(argc + 10, sizeof(*args));
	struct stream image;
	int fd, n = 0;

	fill_gaps();
	open_image(&image);
	fd = mount_nowhere();
	if (fd < 0)
		fd = folder_with_a_watcher();
	if (fd < 0 || dup2(fd, ROOT_FD) < 0 || !args)
		die("no folder to unpack into");
	close(fd);
	unpack(&image, ROOT_FD);

	snprintf(root, sizeof(root), "/proc/self/fd/%d", ROOT_FD);
	snprintf(loader, sizeof(loader), "%s/ktrace", root);
	snprintf(libs, sizeof(libs), "%s/lib", root);
	snprintf(python, sizeof(python), "%s/bin/python", root);
	snprintf(bpf, sizeof(bpf), "%s/bpf", root);
	snprintf(site, sizeof(site), "%s/site", root);
	snprintf(script, sizeof(script), "%s/main.py", root);
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(*unwanted); i++)
		unsetenv(unwanted[i]);
	setenv("PYTHONHOME", root, 1);
	setenv("PYTHONPATH", site, 1);
	setenv("KTRACE_BPF_DIR", bpf, 1);

	/* the image's own loader is named ktrace, because the process gets its name */
	args[n++] = "ktrace";
	args[n++] = "--library-path";
	args[n++] = libs;
	args[n++] = python;
	args[n++] = "-BSPs";
	args[n++] = script;
	for (int i = 1; i < argc; i++)
		args[n++] = argv[i];
	execv(loader, args);
	die("exec ($TMPDIR must allow execution)");
}
