/* Writes down every change below the directory RECORD_DIRECTORY, in order, to the file RECORD_LOG.
   Preloaded into the agent. Changes and syncs go one at a time, so that what stands before a sync in the
   log was written before the sync began.

   A record: kind (1 byte), bytes of the path (4), offset (8), bytes of the data (4), path, data; numbers
   in the order of this machine. Kinds: C create, W write, T truncate, S sync, R rename, U unlink,
   M make directory, D remove directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Returns the path below the directory, or NULL. */
static const char *below(const char *path) {
    const char *directory = getenv("RECORD_DIRECTORY");
    size_t length = directory ? strlen(directory) : 0;
    if (!length || strncmp(path, directory, length) || path[length] != '/') return NULL;
    return path + length + 1;
}

/* The path may change until it is this thread's turn. */
static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return below(buffer);
}

static void note(char kind, const char *path, uint64_t offset, const void *data, uint32_t bytes) {
    static int log = -1;
    if (log < 0) log = syscall(SYS_openat, AT_FDCWD, getenv("RECORD_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    char head[17];
    uint32_t path_bytes = strlen(path);
    head[0] = kind;
    memcpy(head + 1, &path_bytes, 4);
    memcpy(head + 5, &offset, 8);
    memcpy(head + 13, &bytes, 4);
    struct iovec parts[] = {{head, sizeof head}, {(void *)path, path_bytes}, {(void *)data, bytes}};
    size_t whole = sizeof head + path_bytes + bytes;
    if (log < 0 || syscall(SYS_writev, log, parts, 3) != (ssize_t)whole) abort();
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    if (!path) return REAL(pwrite64)(fd, data, bytes, offset);
    pthread_mutex_lock(&turn);
    path = path_of(fd, buffer);
    ssize_t wrote = REAL(pwrite64)(fd, data, bytes, offset);
    if (path && wrote > 0) note('W', path, offset, data, wrote);
    pthread_mutex_unlock(&turn);
    return wrote;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    if (!path) return REAL(write)(fd, data, bytes);
    pthread_mutex_lock(&turn);
    path = path_of(fd, buffer);
    ssize_t wrote = REAL(write)(fd, data, bytes);
    if (path && wrote > 0) note('W', path, lseek(fd, 0, SEEK_CUR) - wrote, data, wrote);
    pthread_mutex_unlock(&turn);
    return wrote;
}

static int truncated(int fd, off64_t bytes) {
    char buffer[PATH_MAX];
    pthread_mutex_lock(&turn);
    const char *path = path_of(fd, buffer);
    int result = REAL(ftruncate64)(fd, bytes);
    if (path && result == 0) note('T', path, bytes, NULL, 0);
    pthread_mutex_unlock(&turn);
    return result;
}

int ftruncate64(int fd, off64_t bytes) { return truncated(fd, bytes); }
int ftruncate(int fd, off_t bytes) { return truncated(fd, bytes); }

static int synced(int (*real)(int), int fd) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    if (!path) return real(fd);
    pthread_mutex_lock(&turn);
    path = path_of(fd, buffer);
    int result = real(fd);
    if (path && result == 0) note('S', path, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    return result;
}

int fsync(int fd) { return synced(REAL(fsync), fd); }
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }

int open64(const char *name, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    const char *path = below(name);
    if (!path || !(flags & (O_CREAT | O_TRUNC))) return REAL(open64)(name, flags, mode);
    pthread_mutex_lock(&turn);
    int was_there = access(name, F_OK) == 0;
    int fd = REAL(open64)(name, flags, mode);
    int error = errno;
    if (fd >= 0 && !was_there) note('C', path, 0, NULL, 0);
    if (fd >= 0 && was_there && flags & O_TRUNC) note('T', path, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return fd;
}

int rename(const char *from, const char *to) {
    const char *path = below(from), *other = below(to);
    pthread_mutex_lock(&turn);
    int result = REAL(rename)(from, to);
    if (path && other && result == 0) note('R', path, 0, other, strlen(other));
    pthread_mutex_unlock(&turn);
    return result;
}

int mkdir(const char *name, mode_t mode) {
    const char *path = below(name);
    pthread_mutex_lock(&turn);
    int result = REAL(mkdir)(name, mode);
    int error = errno;
    if (path && result == 0) note('M', path, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

static int removed(const char *name, int result, char kind) {
    const char *path = below(name);
    int error = errno;
    if (path && result == 0) note(kind, path, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

int unlink(const char *name) {
    pthread_mutex_lock(&turn);
    return removed(name, REAL(unlink)(name), 'U');
}

int rmdir(const char *name) {
    pthread_mutex_lock(&turn);
    return removed(name, REAL(rmdir)(name), 'D');
}

int unlinkat(int directory, const char *name, int flags) {
    char link[64], path[2 * PATH_MAX] = "";
    if (name[0] != '/' && directory != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, path, PATH_MAX - 1);
        if (length > 0) path[length] = '/';
    }
    strncat(path, name, PATH_MAX - 1);
    pthread_mutex_lock(&turn);
    return removed(path, REAL(unlinkat)(directory, name, flags), flags & AT_REMOVEDIR ? 'D' : 'U');
}
