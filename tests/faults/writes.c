/* Preloaded into a process and its children: what they change of files below some folders is counted, and from one
 * change on the disk is full, or at it the process is killed, as by a power cut.
 *
 * WRITES_STATE: a file with four ints: at, kind, bytes, count. WRITES_UNDER: paths, joined by colons.
 * WRITES_LOG: a file that is told of each change, one a line. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FULL = 1, KILL = 2 };
enum { GOES = 0, FAILS = 1 };

static struct { int at, kind, bytes, count; } *state;
static const char *under, *log_path;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WRITES_STATE");
    under = getenv("WRITES_UNDER");
    log_path = getenv("WRITES_LOG");
    int (*genuine)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int file = path && under ? genuine(path, O_RDWR) : -1;
    if (file < 0) return;
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (state == MAP_FAILED) state = NULL;
    close(file);
}

static int watched(const char *path) {
    for (const char *one = under; state && path && *one;) {
        size_t length = strcspn(one, ":");
        if (!strncmp(path, one, length)) return 1;
        one += length + (one[length] == ':');
    }
    return 0;
}

static void tell(const char *what, const char *path) {
    char line[PATH_MAX + 32];
    ssize_t (*genuine)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    int (*opened)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int file = opened(log_path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    if (file >= 0 && genuine(file, line, length) < length) abort();
    if (file >= 0) close(file);
}

/* Count one change. `frees`: one that a full disk allows. */
static int change(const char *what, const char *path, int frees, int torn) {
    if (!watched(path)) return GOES;
    if (log_path) tell(what, path);
    int number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (state->kind == KILL && number == state->at) {
        if (!torn || !state->bytes) kill(getpid(), SIGKILL);
        return FAILS; /* the caller writes a part first */
    }
    if (state->kind == FULL && number >= state->at && !frees) {
        errno = ENOSPC;
        return FAILS;
    }
    return GOES;
}

static const char *name(int file, char *buffer) {
    char link[32];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = state ? readlink(link, buffer, PATH_MAX) : -1;
    errno = before;
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

#define GENUINE(type, symbol, ...) type (*genuine)(__VA_ARGS__) = dlsym(RTLD_NEXT, #symbol)
#define PART(all) ((size_t)state->bytes < (all) ? (size_t)state->bytes : (all))

ssize_t write(int file, const void *content, size_t length) {
    char buffer[PATH_MAX + 1];
    GENUINE(ssize_t, write, int, const void *, size_t);
    if (change("write", name(file, buffer), 0, 1) == GOES) return genuine(file, content, length);
    if (state->kind == FULL) return -1;
    genuine(file, content, PART(length));
    return kill(getpid(), SIGKILL);
}

#define AT_PLACE(symbol, offset) \
    ssize_t symbol(int file, const void *content, size_t length, offset place) { \
        char buffer[PATH_MAX + 1]; \
        GENUINE(ssize_t, symbol, int, const void *, size_t, offset); \
        if (change("write", name(file, buffer), 0, 1) == GOES) return genuine(file, content, length, place); \
        if (state->kind == FULL) return -1; \
        genuine(file, content, PART(length), place); \
        return kill(getpid(), SIGKILL); \
    }
AT_PLACE(pwrite, off_t)
AT_PLACE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    char buffer[PATH_MAX + 1];
    GENUINE(ssize_t, writev, int, const struct iovec *, int);
    return change("write", name(file, buffer), 0, 0) == GOES ? genuine(file, parts, count) : -1;
}

#define SYNC(symbol) \
    int symbol(int file) { \
        char buffer[PATH_MAX + 1]; \
        GENUINE(int, symbol, int); \
        return change("sync", name(file, buffer), 0, 0) == GOES ? genuine(file) : -1; \
    }
SYNC(fsync)
SYNC(fdatasync)

#define LENGTH(symbol, offset) \
    int symbol(int file, offset length) { \
        char buffer[PATH_MAX + 1]; \
        GENUINE(int, symbol, int, offset); \
        return change("truncate", name(file, buffer), length == 0, 0) == GOES ? genuine(file, length) : -1; \
    }
LENGTH(ftruncate, off_t)
LENGTH(ftruncate64, off64_t)

#define RESERVE(symbol, offset) \
    int symbol(int file, offset from, offset length) { \
        char buffer[PATH_MAX + 1]; \
        GENUINE(int, symbol, int, offset, offset); \
        return change("reserve", name(file, buffer), 0, 0) == GOES ? genuine(file, from, length) : ENOSPC; \
    }
RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    GENUINE(int, rename, const char *, const char *);
    return change("rename", to, 0, 0) == GOES ? genuine(from, to) : -1;
}

int mkdir(const char *path, mode_t mode) {
    GENUINE(int, mkdir, const char *, mode_t);
    return access(path, F_OK) && change("mkdir", path, 0, 0) == FAILS ? -1 : genuine(path, mode);
}

int unlink(const char *path) {
    GENUINE(int, unlink, const char *);
    return change("unlink", path, 1, 0) == GOES ? genuine(path) : -1;
}

#define OPEN(symbol) \
    int symbol(const char *path, int flags, ...) { \
        GENUINE(int, symbol, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (flags & O_CREAT && watched(path) && access(path, F_OK) && change("create", path, 0, 0) == FAILS) return -1; \
        return genuine(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
