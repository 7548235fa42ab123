// SPDX-License-Identifier: Apache-2.0
/*
 * Receivers that sleep in the kernel until they are told to wake.
 *
 *   sleepers FILE
 *
 * Prints "asleep" once all of them are blocked in recv() or recvfrom(), and waits until FILE
 * exists. Then it sends each a datagram or a segment and prints how many received it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { UDP = 4, TCP = 4, PORT = 7821, BYTES = 7 };

static void check(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(port) };

	name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return name;
}

static pid_t receiver(int fd)
{
	char buffer[64];
	pid_t child = fork();

	if (!child)
		_exit(recv(fd, buffer, sizeof(buffer), 0) == BYTES ? 0 : 1);
	close(fd);
	return child;
}

/* Whether the process waits in a call: field 3 of /proc/PID/stat is S. */
static int sleeps(pid_t pid)
{
	char path[64], text[256] = "";
	FILE *file;
	char *end;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	check(file != NULL, path);
	check(fgets(text, sizeof(text), file) != NULL, path);
	fclose(file);
	end = strrchr(text, ')');
	return end && end[2] == 'S';
}

int main(int argc, char **argv)
{
	int peers[UDP + TCP], listener = socket(AF_INET, SOCK_STREAM, 0), woke = 0;
	struct sockaddr_in name = loopback(PORT);
	pid_t children[UDP + TCP];
	int status;

	check(argc == 2, "one argument: FILE");
	check(!setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)),
	      "SO_REUSEADDR");
	check(!bind(listener, (void *)&name, sizeof(name)) && !listen(listener, TCP), "listen");
	for (int i = 0; i < UDP; i++) {
		int fd = socket(AF_INET, SOCK_DGRAM, 0);
		struct sockaddr_in own = loopback(PORT + 1 + i);

		check(!bind(fd, (void *)&own, sizeof(own)), "bind");
		peers[i] = socket(AF_INET, SOCK_DGRAM, 0);
		check(!connect(peers[i], (void *)&own, sizeof(own)), "connect");
		children[i] = receiver(fd);
	}
	for (int i = UDP; i < UDP + TCP; i++) {
		peers[i] = socket(AF_INET, SOCK_STREAM, 0);
		check(!connect(peers[i], (void *)&name, sizeof(name)), "connect");
		children[i] = receiver(accept(listener, NULL, NULL));
	}
	for (int i = 0; i < UDP + TCP; i++)
		while (!sleeps(children[i]))
			usleep(1000);
	printf("asleep\n");
	fflush(stdout);
	while (access(argv[1], F_OK))
		usleep(1000);
	for (int i = 0; i < UDP + TCP; i++)
		check(send(peers[i], "payload", BYTES, 0) == BYTES, "send");
	for (int i = 0; i < UDP + TCP; i++)
		if (waitpid(children[i], &status, 0) == children[i] && status == 0)
			woke++;
	printf("woke %d of %d\n", woke, UDP + TCP);
	return woke != UDP + TCP;
}
