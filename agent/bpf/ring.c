/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies records from the ring buffer to the spool file in bulk, so that no record passes
 * through Python. libbpf reads the ring with the required memory barriers and calls take()
 * for each record, which copies it to one large buffer; flush() writes the buffer.
 */
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/types.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "events.h"

#define KT_BUFFER_RECORDS 4096
#define KT_DRAIN_MS 20

struct kt_ring {
	struct ring_buffer *rb;
	__u64 records;	      /* in the spool file */
	__u64 lost[KT_HOOKS]; /* read from the ring but not written */
	__u64 used;	      /* records in the buffer */
	int spool;
	int error; /* errno of a failed write; no further writes */
	volatile int stop;
	int pad;
	struct kt_event buffer[KT_BUFFER_RECORDS];
};

static int flush(struct kt_ring *ring)
{
	const char *from = (const char *)ring->buffer;
	size_t left = ring->used * sizeof(struct kt_event), done = 0;

	while (!ring->error && done < left) {
		ssize_t n = write(ring->spool, from + done, left - done);

		if (n > 0)
			done += n;
		else if (n < 0 && errno != EINTR)
			ring->error = errno;
	}
	ring->records += done / sizeof(struct kt_event);
	for (__u64 i = done / sizeof(struct kt_event); i < ring->used; i++)
		ring->lost[ring->buffer[i].type]++;
	if (done % sizeof(struct kt_event)) /* cut off a partial record */
		(void)!ftruncate(ring->spool, ring->records * sizeof(struct kt_event));
	ring->used = 0;
	return 0;
}

static int take(void *ctx, void *data, size_t size)
{
	struct kt_ring *ring = ctx;

	if (size != sizeof(struct kt_event))
		return -EPROTO;
	memcpy(&ring->buffer[ring->used++], data, size);
	return ring->used == KT_BUFFER_RECORDS ? flush(ring) : 0;
}

struct kt_ring *kt_ring_open(int map_fd, int spool)
{
	struct kt_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return NULL;
	ring->spool = spool;
	ring->rb = ring_buffer__new(map_fd, take, ring, NULL);
	if (!ring->rb) {
		free(ring);
		return NULL;
	}
	return ring;
}

/* Writes all records that are in the ring now. Returns 0 or -errno. */
int kt_ring_drain(struct kt_ring *ring)
{
	int n = ring_buffer__consume(ring->rb);

	flush(ring);
	return n < 0 ? n : 0;
}

/* Drains the ring until kt_ring_stop(). Returns 0 or -errno. */
int kt_ring_run(struct kt_ring *ring)
{
	while (!ring->stop) {
		/* Returns at a wakeup by kt_submit(), else after KT_DRAIN_MS. */
		int n = ring_buffer__poll(ring->rb, KT_DRAIN_MS);

		if (!n)
			n = ring_buffer__consume(ring->rb);
		flush(ring);
		if (n < 0 && n != -EINTR)
			return n;
	}
	return 0;
}

void kt_ring_stop(struct kt_ring *ring)
{
	ring->stop = 1;
}

__u64 kt_ring_records(const struct kt_ring *ring)
{
	return ring->records;
}

__u64 kt_ring_lost(const struct kt_ring *ring, unsigned int hook)
{
	return hook < KT_HOOKS ? ring->lost[hook] : 0;
}

int kt_ring_error(const struct kt_ring *ring)
{
	return ring->error;
}

void kt_ring_close(struct kt_ring *ring)
{
	ring_buffer__free(ring->rb);
	free(ring);
}
