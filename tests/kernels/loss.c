// SPDX-License-Identifier: Apache-2.0
/*
 * A TCP transfer on the loopback device, of whose segments the receiver drops one in eight.
 *
 * The socket filter of the receiver decides by the kernel's random numbers: no module is needed.
 * Prints the segments that the kernel counted as retransmitted meanwhile (RetransSegs, RFC 4022).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 7831, BYTES = 1000000, SEGMENT = 536, TCP_COLUMNS = 32 };

static void check(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

/* The line "Tcp: RtoAlgorithm ..." of /proc/net/snmp names the columns of the next one. */
static long retransmitted(void)
{
	char names[1024] = "", values[1024] = "", *name_rest, *value_rest;
	FILE *file = fopen("/proc/net/snmp", "r");

	check(file != NULL, "/proc/net/snmp");
	while (fgets(names, sizeof(names), file) && strncmp(names, "Tcp:", 4))
		;
	check(fgets(values, sizeof(values), file) != NULL, "/proc/net/snmp");
	fclose(file);
	char *name = strtok_r(names, " \n", &name_rest);
	char *value = strtok_r(values, " \n", &value_rest);

	for (int i = 0; name && value && i < TCP_COLUMNS; i++) {
		if (!strcmp(name, "RetransSegs"))
			return atol(value);
		name = strtok_r(NULL, " \n", &name_rest);
		value = strtok_r(NULL, " \n", &value_rest);
	}
	fputs("no RetransSegs\n", stderr);
	exit(1);
}

static void drop_one_in_eight(int fd)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (__u32)(SKF_AD_OFF + SKF_AD_RANDOM)),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0xe0000000, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
	};
	struct sock_fprog filter = { sizeof(code) / sizeof(*code), code };

	check(!setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)), "filter");
}

static void receive(int listener)
{
	int fd = accept(listener, NULL, NULL), total = 0, unused = 0, part;
	char buffer[4096];

	check(fd >= 0, "accept");
	drop_one_in_eight(fd);
	check(write(fd, "r", 1) == 1, "write");
	while ((part = read(fd, buffer, sizeof(buffer))) > 0)
		total += part;
	check(part == 0 && total == BYTES, "read");
	/* The last ACK must arrive: no segment is resent after the count was read. */
	check(!setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused)), "filter");
	exit(0);
}

int main(void)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	int segment = SEGMENT, status;
	static char payload[BYTES];
	long before = retransmitted();
	char byte;

	name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(!bind(listener, (void *)&name, sizeof(name)), "bind");
	check(!listen(listener, 1), "listen");
	pid_t child = fork();

	if (!child)
		receive(listener);
	check(!setsockopt(client, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof(segment)), "segment");
	check(!connect(client, (void *)&name, sizeof(name)), "connect");
	check(read(client, &byte, 1) == 1, "read");
	for (int sent = 0, part; sent < BYTES; sent += part) {
		part = write(client, payload + sent, BYTES - sent);
		check(part > 0, "write");
	}
	shutdown(client, SHUT_WR);
	check(waitpid(child, &status, 0) == child && status == 0, "receiver");
	printf("%ld\n", retransmitted() - before);
	return 0;
}
