// SPDX-License-Identifier: Apache-2.0
/* Stands in for the agent where a test is about the operator: the snapshot's name, up to its first
 * dash, says how it ends. It records nothing. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ZEROS "00000000000000000000000000000000"

static const char *capture;

/* The first text after `"key":"`, which in an assignment are those of the snapshot and the node. */
static const char *text_of(const char *key)
{
	char quoted[32];
	snprintf(quoted, sizeof(quoted), "\"%s\":\"", key);
	const char *at = strstr(capture, quoted);
	if (!at)
		exit(90);
	at += strlen(quoted);
	return strndup(at, strcspn(at, "\""));
}

static void tell(const char *node)
{
	FILE *log = fopen("/dev/termination-log", "w");
	if (!log)
		exit(91);
	fprintf(log,
		"{\"version\":1,\"snapshot_uid\":\"%s\",\"node\":\"%s\",\"reason\":\"Completed\","
		"\"delivered\":{\"path\":\"node=%s/ktrace.bundle.tgz\",\"bytes\":11,\"sha256\":\"" ZEROS
		ZEROS "\"},\"events\":7,\"complete\":true,\"ended_by\":\"duration\",\"findings\":["
		"{\"id\":\"DNS_SLOW\",\"severity\":\"warning\",\"title\":\"slow\",\"count\":3}]}",
		text_of("uid"), node, node);
	if (fclose(log))
		exit(92);
}

static void delivered(int sig)
{
	(void)sig;
	tell(text_of("node"));
	_exit(0);
}

static void hang(void)
{
	for (;;)
		pause();
}

/* Until the memory limit of its container ends it. */
static void eat(void)
{
	for (;;)
		memset(malloc(1 << 20), 1, 1 << 20);
}

/* More on standard output than its container's ephemeral storage. */
static void spill(void)
{
	char line[1024];
	memset(line, 'x', sizeof(line));
	line[sizeof(line) - 1] = '\n';
	for (int i = 0; i < 16 * 1024; i++)
		fwrite(line, sizeof(line), 1, stdout);
	fflush(stdout);
}

int main(void)
{
	capture = getenv("KTRACE_CAPTURE");
	if (!capture)
		return 93;
	char how[32] = "";
	sscanf(text_of("name"), "%31[a-z]", how);
	signal(SIGTERM, delivered);
	if (!strcmp(how, "hangs"))
		hang();
	if (!strcmp(how, "deaf")) {
		signal(SIGTERM, SIG_IGN);
		hang();
	}
	if (!strcmp(how, "eats"))
		eat();
	if (!strcmp(how, "spills")) {
		signal(SIGTERM, SIG_IGN);
		spill();
		hang();
	}
	if (!strcmp(how, "crashes"))
		abort();
	if (!strcmp(how, "mute"))
		return 0;
	if (!strcmp(how, "lies")) {
		tell("another");
		return 0;
	}
	sleep(1);
	tell(text_of("node"));
	return 0;
}
