/* A disk that takes 20 s for each sync while the file named by SLOW_DISK exists; the file named by
   SLOW_SYNC appears when one waits. Preloaded into the agent; no kernel module is needed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int slowly(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *flag = getenv("SLOW_DISK");
    if (flag && access(flag, F_OK) == 0) {
        close(open(getenv("SLOW_SYNC"), O_CREAT | O_WRONLY, 0600));
        sleep(20);
    }
    return real(fd);
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }
