// SPDX-License-Identifier: Apache-2.0
// drop NAME,NAME,... COMMAND: runs a command with these capabilities only, as a container has
// them: root, but with a smaller bounding set. busybox has no setpriv that can do this.
#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const struct {
	const char *name;
	int number;
} known[] = {
	{ "NET_ADMIN", CAP_NET_ADMIN }, { "SYS_PTRACE", CAP_SYS_PTRACE },
	{ "SYS_ADMIN", CAP_SYS_ADMIN }, { "SYS_RESOURCE", CAP_SYS_RESOURCE },
	{ "PERFMON", CAP_PERFMON },	{ "BPF", CAP_BPF },
};

static int number_of(const char *name)
{
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(known[i].name, name))
			return known[i].number;
	return -1;
}

int main(int argc, char **argv)
{
	bool kept[CAP_LAST_CAP + 1] = { false };

	if (argc < 3)
		return 2;
	for (char *name = strtok(argv[1], ","); name; name = strtok(NULL, ",")) {
		int number = number_of(name);

		if (number < 0) {
			fprintf(stderr, "drop: %s is not known\n", name);
			return 2;
		}
		kept[number] = true;
	}
	for (int number = 0; prctl(PR_CAPBSET_READ, number) >= 0; number++) {
		if (number <= CAP_LAST_CAP && kept[number])
			continue;
		if (prctl(PR_CAPBSET_DROP, number)) {
			perror("drop: PR_CAPBSET_DROP");
			return 1;
		}
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
