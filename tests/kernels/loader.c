// SPDX-License-Identifier: Apache-2.0
/*
 * Loads a BPF object in a guest that has no Python, records, and writes what it recorded.
 *
 *   loader features KIND:NAME...
 *       Prints "KIND NAME N" for each: the number of arguments of a `tracepoint` or
 *       `function`, 1 for a `struct` or `file` that exists, "-" where there is none.
 *
 *   loader record OBJECT OPTION... PROGRAM=TARGET...
 *       Loads only these programs and attaches them in this order. Writes READY to standard
 *       error, records until SIGINT, detaches them. A TARGET is
 *
 *         section       what the program's section names
 *         iter@WHEN     an iterator, run once, WHEN at the `start` or the `end`
 *         iter:MAP@WHEN an iterator over the elements of MAP
 *
 *       --config=FILE       the content of section .rodata.config
 *       --preallocate=MAP   without BPF_F_NO_PREALLOC
 *
 * Standard output: lines, each followed by the bytes that it announces.
 *
 *   program NAME INSTRUCTIONS MISSES
 *   iterator NAME BYTES
 *   map NAME KEY_BYTES VALUE_BYTES CPUS ENTRIES
 *   records BYTES
 *
 * Maps are the per-CPU arrays and the hashes. INSTRUCTIONS are those that the verifier
 * processed. Exit status 2: a program was not loaded, standard error has "load NAME: " and the
 * verifier's lines, separated by tabs. 3: programs were not attached, "attach NAME: reason".
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	MAX_PROGRAMS = 128,
	LOG_BYTES = 1 << 16,
	LOG_STATS = 4, /* BPF_LOG_STATS: "processed N insns", since v5.2 */
	DRAIN_MS = 20,
	ITERATOR_READ = 1 << 14,

	NOT_LOADED = 2,
	NOT_ATTACHED = 3,
};

struct buffer {
	char *bytes;
	size_t used;
	size_t size;
};

struct one {
	struct bpf_program *program;
	struct bpf_link *link;
	const char *name;
	char *target;
	char *when; /* of an iterator */
	char *log;
	struct buffer output;
};

static struct one programs[MAX_PROGRAMS];
static int program_count;
static struct bpf_object *object;
static struct buffer records;
static volatile sig_atomic_t stopped;

static void fail(int status, const char *what, const char *name, int error)
{
	fprintf(stderr, "%s %s: %s\n", what, name, strerror(error < 0 ? -error : error));
	exit(status);
}

static void append(struct buffer *buffer, const void *bytes, size_t count)
{
	while (buffer->used + count > buffer->size) {
		buffer->size = buffer->size ? 2 * buffer->size : 1 << 20;
		buffer->bytes = realloc(buffer->bytes, buffer->size);
		if (!buffer->bytes)
			fail(1, "memory of", "a buffer", ENOMEM);
	}
	memcpy(buffer->bytes + buffer->used, bytes, count);
	buffer->used += count;
}

/* Features. */

static void print_feature(const char *kind, const char *name, int found)
{
	if (found < 0)
		printf("%s %s -\n", kind, name);
	else
		printf("%s %s %d\n", kind, name, found);
}

static int tracepoint_args(const struct btf *btf, const char *name)
{
	char symbol[128];
	int id;

	snprintf(symbol, sizeof(symbol), "btf_trace_%s", name);
	id = btf__find_by_name_kind(btf, symbol, BTF_KIND_TYPEDEF);
	if (id < 0)
		return -1;
	/* typedef -> pointer -> prototype, whose first argument is void *__data */
	id = btf__type_by_id(btf, btf__type_by_id(btf, id)->type)->type;
	return btf_vlen(btf__type_by_id(btf, id)) - 1;
}

static int function_args(const struct btf *btf, const char *name)
{
	int id = btf__find_by_name_kind(btf, name, BTF_KIND_FUNC);

	return id < 0 ? -1 : btf_vlen(btf__type_by_id(btf, btf__type_by_id(btf, id)->type));
}

static int features(int count, char **wanted)
{
	struct btf *btf = btf__load_vmlinux_btf();

	if (!btf)
		fail(1, "BTF of", "the kernel", errno);
	for (int i = 0; i < count; i++) {
		char *name = strchr(wanted[i], ':');

		if (!name)
			fail(1, "feature", wanted[i], EINVAL);
		*name++ = 0;
		if (!strcmp(wanted[i], "tracepoint"))
			print_feature(wanted[i], name, tracepoint_args(btf, name));
		else if (!strcmp(wanted[i], "function"))
			print_feature(wanted[i], name, function_args(btf, name));
		else if (!strcmp(wanted[i], "struct"))
			print_feature(wanted[i], name,
				      btf__find_by_name_kind(btf, name, BTF_KIND_STRUCT) < 0 ? -1
											     : 1);
		else
			print_feature(wanted[i], name, access(name, F_OK) ? -1 : 1);
	}
	return 0;
}

/* Load and attach. */

static struct bpf_map *map_named(const char *name)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, name);

	if (!map)
		fail(1, "map", name, ENOENT);
	return map;
}

static void configure(const char *path)
{
	static char content[1 << 16];
	FILE *file = fopen(path, "rb");
	int error;

	if (!file)
		fail(1, "open", path, errno);
	error = bpf_map__set_initial_value(map_named(".rodata.config"), content,
					   fread(content, 1, sizeof(content), file));
	if (error)
		fail(1, "size of", path, error);
	fclose(file);
}

static void option(char *text)
{
	char *value = strchr(text, '=');
	struct bpf_map *map;

	if (!value)
		fail(1, "option", text, EINVAL);
	*value++ = 0;
	if (!strcmp(text, "--config")) {
		configure(value);
	} else if (!strcmp(text, "--preallocate")) {
		map = map_named(value);
		bpf_map__set_map_flags(map, bpf_map__map_flags(map) & ~BPF_F_NO_PREALLOC);
	} else {
		fail(1, "option", text, EINVAL);
	}
}

static void want(char *text)
{
	struct one *one = &programs[program_count++];
	char *target = strchr(text, '=');

	if (!target || program_count == MAX_PROGRAMS)
		fail(1, "program", text, EINVAL);
	*target++ = 0;
	one->name = text;
	one->target = target;
	one->when = strchr(target, '@');
	if (one->when)
		*one->when++ = 0;
	one->log = calloc(1, LOG_BYTES);
	one->program = bpf_object__find_program_by_name(object, text);
	if (!one->program || !one->log)
		fail(1, "program", text, ENOENT);
	bpf_program__set_autoload(one->program, true);
	bpf_program__set_log_level(one->program, LOG_STATS);
	bpf_program__set_log_buf(one->program, one->log, LOG_BYTES);
}

static void load(void)
{
	int error = bpf_object__load(object);

	if (!error)
		return;
	for (int i = 0; i < program_count; i++) {
		char *log = programs[i].log;

		/* One that loaded has a log, too: its statistics alone. */
		if (!*log || !strncmp(log, "processed ", 10) || !strncmp(log, "verification ", 13))
			continue;
		for (char *end = log; (end = strchr(end, '\n'));)
			*end = '\t';
		fprintf(stderr, "load %s: %s\n", programs[i].name, log);
	}
	fail(NOT_LOADED, "not loaded:", "the object", error);
}

static struct bpf_link *attach_iterator(struct one *one)
{
	union bpf_iter_link_info info = {};
	DECLARE_LIBBPF_OPTS(bpf_iter_attach_opts, options);

	if (!strncmp(one->target, "iter:", 5)) {
		info.map.map_fd = bpf_map__fd(map_named(one->target + 5));
		options.link_info = &info;
		options.link_info_len = sizeof(info);
	}
	return bpf_program__attach_iter(one->program, &options);
}

static void attach(void)
{
	int failed = 0;

	for (int i = 0; i < program_count; i++) {
		struct one *one = &programs[i];

		one->link = one->when ? attach_iterator(one) : bpf_program__attach(one->program);
		if (one->link)
			continue;
		fprintf(stderr, "attach %s: %s\n", one->name, strerror(errno));
		failed++;
	}
	if (failed)
		exit(NOT_ATTACHED);
}

static void detach(void)
{
	for (int i = 0; i < program_count; i++) {
		if (programs[i].when)
			continue;
		bpf_link__destroy(programs[i].link);
		programs[i].link = NULL;
	}
}

/* Record. */

static void iterate(const char *when)
{
	static char part[ITERATOR_READ];

	for (int i = 0; i < program_count; i++) {
		struct one *one = &programs[i];
		ssize_t count;
		int fd;

		if (!one->when || strcmp(one->when, when))
			continue;
		fd = bpf_iter_create(bpf_link__fd(one->link));
		if (fd < 0)
			fail(NOT_ATTACHED, "iterate", one->name, errno);
		while ((count = read(fd, part, sizeof(part))) || errno == EAGAIN) {
			if (count < 0 && errno != EAGAIN)
				fail(1, "read", one->name, errno);
			if (count > 0)
				append(&one->output, part, count);
			errno = 0;
		}
		close(fd);
	}
}

/* Also waits until no program runs that began before: membarrier(MEMBARRIER_CMD_GLOBAL). */
static void count_calls(__u32 on)
{
	__u32 zero = 0;

	bpf_map_update_elem(bpf_map__fd(map_named(".data.counting")), &zero, &on, 0);
	syscall(SYS_membarrier, 1, 0, 0);
}

static int take(void *context, void *bytes, size_t count)
{
	(void)context;
	append(&records, bytes, count);
	return 0;
}

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void run(void)
{
	struct ring_buffer *ring =
		ring_buffer__new(bpf_map__fd(map_named("ring")), take, NULL, NULL);

	if (!ring)
		fail(1, "ring", "buffer", errno);
	attach();
	iterate("start");
	count_calls(1);
	fprintf(stderr, "READY\n");
	while (!stopped)
		ring_buffer__poll(ring, DRAIN_MS);
	count_calls(0);
	detach();
	syscall(SYS_membarrier, 1, 0, 0);
	iterate("end");
	ring_buffer__consume(ring);
	ring_buffer__free(ring);
}

/* Results. */

static void print_map(struct bpf_map *map)
{
	size_t key_size = bpf_map__key_size(map), value_size = bpf_map__value_size(map);
	int per_cpu = bpf_map__type(map) == BPF_MAP_TYPE_PERCPU_ARRAY;
	int cpus = per_cpu ? libbpf_num_possible_cpus() : 1, fd = bpf_map__fd(map);
	size_t stride = per_cpu ? (value_size + 7) & ~7UL : value_size, count = 0;
	char *key = calloc(2, key_size), *value = calloc(cpus, stride), *previous = NULL;
	struct buffer entries = {};

	while (!bpf_map_get_next_key(fd, previous, key + key_size)) {
		previous = memcpy(key, key + key_size, key_size);
		if (bpf_map_lookup_elem(fd, key, value))
			continue;
		append(&entries, key, key_size);
		for (int cpu = 0; cpu < cpus; cpu++)
			append(&entries, value + cpu * stride, value_size);
		count++;
	}
	printf("map %s %zu %zu %d %zu\n", bpf_map__name(map), key_size, value_size, cpus, count);
	fwrite(entries.bytes, 1, entries.used, stdout);
	free(entries.bytes);
	free(value);
	free(key);
}

static void print_results(void)
{
	struct bpf_map *map;

	for (int i = 0; i < program_count; i++) {
		struct one *one = &programs[i];
		const char *processed = strstr(one->log, "processed ");
		struct bpf_prog_info info = {};
		__u32 size = sizeof(info);

		bpf_obj_get_info_by_fd(bpf_program__fd(one->program), &info, &size);
		printf("program %s %ld %llu\n", one->name,
		       processed ? strtol(processed + 10, NULL, 10) : 0,
		       (unsigned long long)info.recursion_misses);
		if (one->when) {
			printf("iterator %s %zu\n", one->name, one->output.used);
			fwrite(one->output.bytes, 1, one->output.used, stdout);
		}
	}
	bpf_object__for_each_map(map, object) if (bpf_map__type(map) == BPF_MAP_TYPE_PERCPU_ARRAY ||
						  bpf_map__type(map) == BPF_MAP_TYPE_HASH)
		print_map(map);
	printf("records %zu\n", records.used);
	fwrite(records.bytes, 1, records.used, stdout);
}

static int print_warning(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, arguments) : 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct bpf_program *program;

	libbpf_set_print(print_warning);
	if (argc > 2 && !strcmp(argv[1], "features"))
		return features(argc - 2, argv + 2);
	if (argc < 4 || strcmp(argv[1], "record"))
		fail(1, "usage:", "loader features|record ...", EINVAL);
	object = bpf_object__open_file(argv[2], NULL);
	if (!object)
		fail(1, "open", argv[2], errno);
	bpf_object__for_each_program(program, object) bpf_program__set_autoload(program, false);
	for (int i = 3; i < argc; i++) {
		if (*argv[i] == '-')
			option(argv[i]);
		else
			want(argv[i]);
	}
	sigaction(SIGINT, &action, NULL);
	load();
	run();
	print_results();
	bpf_object__close(object);
	return fflush(stdout) ? 1 : 0;
}
