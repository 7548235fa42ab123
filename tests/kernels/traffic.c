// SPDX-License-Identifier: Apache-2.0
/*
 * The golden workload: socket calls of every form between two processes on the loopback device.
 *
 * Prints what it did, a line for each call, from its own counters and results:
 *
 *   process ROLE TGID
 *   connect TGID LOCAL_PORT PEER_PORT ERRNO
 *   tcp TGID LOCAL_PORT PEER_PORT BYTES_SENT BYTES_RECEIVED
 *   udp_send|udp_recv TGID LOCAL_PORT PEER_PORT|- BYTES
 *
 * PEER_PORT of a receive is "-" where the call passed no buffer for the name.
 *
 * `traffic rounds N` instead sends N datagrams back and forth on one CPU and prints nothing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	CONNECTS = 23,
	REFUSED = 17,
	NAMED = 31,	/* sendto, recvfrom */
	CONNECTED = 29, /* send on a connected socket, recv */
	MESSAGES = 5,	/* sendmsg, recvmsg */
	BATCH = 4,	/* one sendmmsg, one recvmmsg */
	PLAIN = 3,	/* write on a connected socket, read */
	NAMED_V6 = 13,	/* sendto, recvfrom */
	QUERIES = 18,	/* half by connect and send, half by sendto */
	ANSWERED = 7,
	TCP_BYTES = 100,

	TCP_PORT = 7801,
	UDP_PORT = 7802,
	UDP6_PORT = 7803,
	CLOSED_PORT = 7809,
	DNS_PORT = 53,
};

static char payload[1024];
static char lines[1 << 16];
static const char *DNS_SERVER = "127.0.0.2";

static void check(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static void pin(void)
{
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	check(!sched_setaffinity(0, sizeof(first), &first), "sched_setaffinity");
}

static struct sockaddr_in v4(const char *address, int port)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &name.sin_addr);
	return name;
}

static struct sockaddr_in6 v6(int port)
{
	return (struct sockaddr_in6){
		.sin6_family = AF_INET6,
		.sin6_port = htons(port),
		.sin6_addr = IN6ADDR_LOOPBACK_INIT,
	};
}

/* sin_port and sin6_port have the same place. */
static int local_port(int fd)
{
	struct sockaddr_in6 name = {};
	socklen_t size = sizeof(name);

	check(!getsockname(fd, (void *)&name, &size), "getsockname");
	return ntohs(name.sin6_port);
}

static void sent(int fd, int peer, long bytes)
{
	check(bytes > 0, "send");
	printf("udp_send %d %d %d %ld\n", getpid(), local_port(fd), peer, bytes);
}

static void received(int fd, int peer, long bytes)
{
	check(bytes > 0, "receive");
	if (peer)
		printf("udp_recv %d %d %d %ld\n", getpid(), local_port(fd), peer, bytes);
	else
		printf("udp_recv %d %d - %ld\n", getpid(), local_port(fd), bytes);
}

static int bound(int family, int type, const void *name, socklen_t size)
{
	int fd = socket(family, type, 0), on = 1;

	check(fd >= 0, "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	check(!bind(fd, name, size), "bind");
	return fd;
}

/* Server. */

static void serve_tcp(int listener)
{
	for (int i = 0; i < CONNECTS; i++) {
		struct sockaddr_in peer = {};
		socklen_t size = sizeof(peer);
		int fd = accept(listener, (void *)&peer, &size), total = 0, part;
		char buffer[256];

		check(fd >= 0, "accept");
		while ((part = recv(fd, buffer, sizeof(buffer), 0)) > 0)
			total += part;
		printf("tcp %d %d %d 0 %d\n", getpid(), TCP_PORT, ntohs(peer.sin_port), total);
		close(fd);
	}
}

static void receive_named(int fd, int count)
{
	for (int i = 0; i < count; i++) {
		struct sockaddr_in6 peer = {};
		socklen_t size = sizeof(peer);
		char buffer[1024];
		long bytes = recvfrom(fd, buffer, sizeof(buffer), 0, (void *)&peer, &size);

		received(fd, ntohs(peer.sin6_port), bytes);
	}
}

static void receive_messages(int fd)
{
	static char buffers[BATCH][1024];
	struct sockaddr_in peers[BATCH];
	struct mmsghdr batch[BATCH] = {};
	struct iovec parts[BATCH];

	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ buffers[i], sizeof(buffers[i]) };
		batch[i].msg_hdr = (struct msghdr){ .msg_name = &peers[i],
						    .msg_namelen = sizeof(peers[i]),
						    .msg_iov = &parts[i],
						    .msg_iovlen = 1 };
	}
	for (int i = 0; i < MESSAGES; i++) {
		batch[0].msg_hdr.msg_namelen = sizeof(peers[0]);
		long bytes = recvmsg(fd, &batch[0].msg_hdr, 0);

		received(fd, ntohs(peers[0].sin_port), bytes);
	}
	check(recvmmsg(fd, batch, BATCH, 0, NULL) == BATCH, "recvmmsg");
	for (int i = 0; i < BATCH; i++)
		received(fd, ntohs(peers[i].sin_port), batch[i].msg_len);
}

static void serve_udp(int fd, int fd6)
{
	char buffer[1024];

	receive_named(fd, NAMED);
	for (int i = 0; i < CONNECTED; i++)
		received(fd, 0, recv(fd, buffer, sizeof(buffer), 0));
	receive_messages(fd);
	for (int i = 0; i < PLAIN; i++)
		received(fd, 0, read(fd, buffer, sizeof(buffer)));
	receive_named(fd6, NAMED_V6);
}

static void serve_dns(int fd)
{
	for (int i = 0; i < QUERIES; i++) {
		struct sockaddr_in peer = {};
		socklen_t size = sizeof(peer);
		char buffer[512];
		long bytes = recvfrom(fd, buffer, sizeof(buffer), 0, (void *)&peer, &size);

		received(fd, ntohs(peer.sin_port), bytes);
		if (i >= ANSWERED)
			continue;
		buffer[2] |= 0x80; /* QR: an answer, here without records */
		bytes = sendto(fd, buffer, bytes, 0, (void *)&peer, size);
		sent(fd, ntohs(peer.sin_port), bytes);
	}
}

static void server(int ready)
{
	struct sockaddr_in tcp = v4("127.0.0.1", TCP_PORT), udp = v4("127.0.0.1", UDP_PORT),
			   dns = v4(DNS_SERVER, DNS_PORT);
	struct sockaddr_in6 udp6 = v6(UDP6_PORT);
	int listener = bound(AF_INET, SOCK_STREAM, &tcp, sizeof(tcp));
	int fd = bound(AF_INET, SOCK_DGRAM, &udp, sizeof(udp));
	int fd6 = bound(AF_INET6, SOCK_DGRAM, &udp6, sizeof(udp6));
	int dns_fd = bound(AF_INET, SOCK_DGRAM, &dns, sizeof(dns));

	printf("process server %d\n", getpid());
	check(!listen(listener, 64), "listen");
	check(write(ready, "r", 1) == 1, "write");
	serve_tcp(listener);
	serve_udp(fd, fd6);
	serve_dns(dns_fd);
	close(listener);
	exit(fflush(stdout) ? 1 : 0);
}

/* Client. */

static void connect_tcp(int port)
{
	struct sockaddr_in name = v4("127.0.0.1", port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int code = connect(fd, (void *)&name, sizeof(name)) ? errno : 0;
	char end;

	printf("connect %d %d %d %d\n", getpid(), code ? 0 : local_port(fd), port, code);
	if (!code) {
		check(send(fd, payload, TCP_BYTES, 0) == TCP_BYTES, "send");
		printf("tcp %d %d %d %d 0\n", getpid(), local_port(fd), port, TCP_BYTES);
		/* The peer closes only after it has read the end, so both never close at once. */
		shutdown(fd, SHUT_WR);
		check(recv(fd, &end, 1, 0) == 0, "recv");
	}
	close(fd);
}

static void send_messages(int fd, struct sockaddr_in *peer)
{
	struct mmsghdr batch[BATCH] = {};
	struct iovec parts[BATCH];

	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ payload, 70 + i };
		batch[i].msg_hdr = (struct msghdr){ .msg_name = peer,
						    .msg_namelen = sizeof(*peer),
						    .msg_iov = &parts[i],
						    .msg_iovlen = 1 };
	}
	for (int i = 0; i < MESSAGES; i++)
		sent(fd, UDP_PORT, sendmsg(fd, &batch[0].msg_hdr, 0));
	check(sendmmsg(fd, batch, BATCH, 0) == BATCH, "sendmmsg");
	for (int i = 0; i < BATCH; i++)
		sent(fd, UDP_PORT, batch[i].msg_len);
}

static void send_udp(void)
{
	struct sockaddr_in peer = v4("127.0.0.1", UDP_PORT);
	struct sockaddr_in6 peer6 = v6(UDP6_PORT);
	int named = socket(AF_INET, SOCK_DGRAM, 0), connected = socket(AF_INET, SOCK_DGRAM, 0);
	int fd6 = socket(AF_INET6, SOCK_DGRAM, 0);

	check(!connect(connected, (void *)&peer, sizeof(peer)), "connect");
	for (int i = 0; i < NAMED; i++) {
		long bytes = sendto(named, payload, 40 + i, 0, (void *)&peer, sizeof(peer));

		sent(named, UDP_PORT, bytes);
	}
	for (int i = 0; i < CONNECTED; i++)
		sent(connected, UDP_PORT, send(connected, payload, 30 + i, 0));
	send_messages(named, &peer);
	for (int i = 0; i < PLAIN; i++)
		sent(connected, UDP_PORT, write(connected, payload, 20 + i));
	for (int i = 0; i < NAMED_V6; i++) {
		long bytes = sendto(fd6, payload, 60 + i, 0, (void *)&peer6, sizeof(peer6));

		sent(fd6, UDP6_PORT, bytes);
	}
}

static void query(int i)
{
	/* Header: id, recursion desired, one question; example.com, type A, class IN. */
	char packet[] = "\0\0\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1";
	struct sockaddr_in peer = v4(DNS_SERVER, DNS_PORT);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), connected = i % 2 == 0;
	long bytes;

	packet[1] = i + 1;
	if (connected) {
		check(!connect(fd, (void *)&peer, sizeof(peer)), "connect");
		bytes = send(fd, packet, sizeof(packet) - 1, 0);
	} else {
		bytes = sendto(fd, packet, sizeof(packet) - 1, 0, (void *)&peer, sizeof(peer));
	}
	sent(fd, DNS_PORT, bytes);
	if (i < ANSWERED)
		receive_named(fd, 1);
	/* A silent query's socket lives until the process ends, as a resolver's that waits. */
	if (i < ANSWERED)
		close(fd);
}

/* Each send wakes the peer on the same CPU, which preempts the sender in its programs. */
static int rounds(int count)
{
	struct sockaddr_in name = v4("127.0.0.1", UDP_PORT), peer;
	int server = bound(AF_INET, SOCK_DGRAM, &name, sizeof(name)), status;
	int client = socket(AF_INET, SOCK_DGRAM, 0);
	socklen_t size = sizeof(peer);
	char byte = 0;

	pin();
	check(!connect(client, (void *)&name, sizeof(name)), "connect");
	pid_t child = fork();

	for (int i = 0; i < count; i++) {
		if (child) {
			check(send(client, &byte, 1, 0) == 1, "send");
			check(recv(client, &byte, 1, 0) == 1, "recv");
		} else {
			check(recvfrom(server, &byte, 1, 0, (void *)&peer, &size) == 1, "recvfrom");
			check(sendto(server, &byte, 1, 0, (void *)&peer, size) == 1, "sendto");
		}
	}
	if (!child)
		exit(0);
	check(waitpid(child, &status, 0) == child && status == 0, "server");
	return 0;
}

int main(int argc, char **argv)
{
	int ready[2], status;
	char byte;

	if (argc == 3 && !strcmp(argv[1], "rounds"))
		return rounds(atoi(argv[2]));
	check(!pipe(ready), "pipe");
	/* Each process writes its lines at once: they share the file. */
	setvbuf(stdout, lines, _IOFBF, sizeof(lines));
	pid_t child = fork();

	if (!child)
		server(ready[1]);
	check(read(ready[0], &byte, 1) == 1, "read");
	/* Two CPUs that handle the ACK and the first data of one handshake at once create two
	 * children, and close one of them (inet_csk_complete_hashdance): rows beyond the truth. */
	pin();
	printf("process client %d\n", getpid());
	for (int i = 0; i < CONNECTS; i++)
		connect_tcp(TCP_PORT);
	for (int i = 0; i < REFUSED; i++)
		connect_tcp(CLOSED_PORT);
	send_udp();
	for (int i = 0; i < QUERIES; i++)
		query(i);
	check(waitpid(child, &status, 0) == child && status == 0, "server");
	return fflush(stdout) ? 1 : 0;
}
