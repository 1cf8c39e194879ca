/* A disk on which the 512 bytes at BROKEN_AT of the file BROKEN_FILE cannot be read. Preloaded into the
   agent. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    char link[64], path[PATH_MAX];
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "pread64");
    off64_t broken = atoll(getenv("BROKEN_AT"));
    if (offset < broken + 512 && offset + (off64_t)bytes > broken) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0 && (path[length] = 0, strcmp(path, getenv("BROKEN_FILE")) == 0)) {
            errno = EIO;
            return -1;
        }
    }
    return real(fd, data, bytes, offset);
}
