// SPDX-License-Identifier: Apache-2.0
/*
 * visitor PORT COUNT GAP_MS: once /gate/go exists, COUNT processes named kt-PORT, one after
 * the other, GAP_MS apart, each connect once to this one's listener on loopback and live
 * about 5 ms. /gate/PORT.done then holds how many were answered.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static int visit(const struct sockaddr_in *address, int port)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char name[16];

	snprintf(name, sizeof(name), "kt-%d", port);
	prctl(PR_SET_NAME, name);
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		return 1;
	sleep_ms(4);
	return 0;
}

int main(int argc, char **argv)
{
	int port = argc == 4 ? atoi(argv[1]) : 0, count = port ? atoi(argv[2]) : 0;
	long gap = port ? atol(argv[3]) : 0;
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int listener = socket(AF_INET, SOCK_STREAM, 0), answered = 0, fd;
	char path[64], text[16];

	signal(SIGTERM, _exit);
	if (!port || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 16))
		return 2;
	while (access("/gate/go", F_OK))
		sleep_ms(5);
	for (int i = 0; i < count; i++) {
		int status = 1;
		pid_t child = fork();

		if (!child)
			_exit(visit(&address, port));
		close(accept(listener, NULL, NULL));
		if (waitpid(child, &status, 0) == child && !status)
			answered++;
		sleep_ms(gap);
	}
	snprintf(path, sizeof(path), "/gate/%d.done", port);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	if (write(fd, text, snprintf(text, sizeof(text), "%d", answered)) < 0)
		return 3;
	close(fd);
	for (;;)
		pause();
}
