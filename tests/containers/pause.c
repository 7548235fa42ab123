// SPDX-License-Identifier: Apache-2.0
/* The first process of a pod: holds its namespaces until it receives a signal. */
#include <signal.h>
#include <unistd.h>

static void leave(int sig)
{
	_exit(sig == SIGTERM ? 0 : 1);
}

int main(void)
{
	signal(SIGTERM, leave);
	for (;;)
		pause();
}
