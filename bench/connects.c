/* SPDX-License-Identifier: Apache-2.0 */
/* The load of bench_capture.py: N times connect, accept, send five bytes, close, over
 * loopback, with both endpoints in one process. Prints connections per second. */
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int listener, count;

static void *serve(void *unused)
{
	char buffer[64];

	(void)unused;
	for (int i = 0; i < count; i++) {
		int fd = accept(listener, NULL, NULL);

		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
		close(fd);
	}
	return NULL;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = { .sin_family = AF_INET };
	struct linger reset = { .l_onoff = 1 }; /* no TIME_WAIT: ports last */
	socklen_t length = sizeof(addr);
	pthread_t server;
	double begun;

	count = argc > 1 ? atoi(argv[1]) : 20000;
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&addr, length) || listen(listener, 1024) ||
	    getsockname(listener, (struct sockaddr *)&addr, &length) ||
	    pthread_create(&server, NULL, serve, NULL))
		return 1;
	begun = now();
	for (int i = 0; i < count; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(fd, (struct sockaddr *)&addr, length) || send(fd, "hello", 5, 0) != 5)
			return 1;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
	}
	pthread_join(server, NULL);
	printf("%.0f\n", count / (now() - begun));
	return 0;
}
