/* Files mapped over reserved addresses: their bytes are used where the page cache has them, without a copy, and without
   memory to copy them to. mapped.py calls and says what the arguments are.

   A file that is cut, or whose disk fails, while it is mapped has no bytes to show: the access raises SIGBUS, which would
   end the process. Here the lost page is replaced by an empty one, so that the access ends, and counted: who used
   mapped bytes asks afterwards whether any were lost, and throws away what was made of them. For Linux; elsewhere nothing
   is reserved, and files are read. */

#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#if defined __linux__
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum { MOST = 4096 }; /* reservations at the same time */

static struct {
    atomic_uintptr_t start; /* 0: free; 1: about to be used, or to be free */
    atomic_size_t bytes;
} reserved[MOST];

static atomic_long lost;
static struct sigaction before;

static int is_reserved(uintptr_t address) {
    for (int i = 0; i < MOST; i++) {
        const uintptr_t start = reserved[i].start;
        if (start > 1 && address >= start && address - start < reserved[i].bytes) return 1;
    }
    return 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int error = errno;
    const uintptr_t address = (uintptr_t)info->si_addr, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    (void)context;
    if (info->si_code > 0 && is_reserved(address)
        && mmap((void *)(address / page * page), page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
        lost++;
    } else { /* not ours: the access is repeated, and meets whoever was asked before */
        sigaction(number, &before, NULL);
        if (info->si_code <= 0) raise(number);
    }
    errno = error;
}

static void catch_bus_errors(void) {
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK}, found;
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, &ours, &found) == 0 && found.sa_sigaction != on_bus_error) before = found;
}

void *relex_reserve(size_t bytes) {
    catch_bus_errors();
    for (int i = 0; i < MOST; i++) {
        uintptr_t free_slot = 0;
        if (!atomic_compare_exchange_strong(&reserved[i].start, &free_slot, 1)) continue;
        void *start = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start != MAP_FAILED) reserved[i].bytes = bytes;
        reserved[i].start = start == MAP_FAILED ? 0 : (uintptr_t)start;
        return start == MAP_FAILED ? NULL : start;
    }
    return NULL;
}

void relex_release(void *start) {
    for (int i = 0; i < MOST; i++)
        if (reserved[i].start == (uintptr_t)start) {
            reserved[i].start = 1; /* first: from now on these addresses may become someone else's */
            munmap(start, reserved[i].bytes);
            reserved[i].start = 0;
            return;
        }
}

int relex_map(void *at, size_t bytes, int file, int64_t offset) {
    if (mmap(at, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, offset) == MAP_FAILED) return errno;
    madvise(at, bytes, MADV_WILLNEED); /* the disk may begin */
    return 0;
}

int relex_wait_for(void *at, size_t bytes) {
    return madvise(at, bytes, MADV_POPULATE_READ) && errno != EINVAL ? errno : 0; /* EINVAL: Linux is older */
}

int relex_unmap(void *at, size_t bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap(at, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED ? errno : 0;
}

long relex_lost_pages(void) { return lost; }

#else
void *relex_reserve(size_t bytes) { (void)bytes; return NULL; }
void relex_release(void *start) { (void)start; }
int relex_map(void *at, size_t bytes, int file, int64_t offset) {
    (void)at; (void)bytes; (void)file; (void)offset;
    return ENOSYS;
}
int relex_wait_for(void *at, size_t bytes) { (void)at; (void)bytes; return ENOSYS; }
int relex_unmap(void *at, size_t bytes) { (void)at; (void)bytes; return ENOSYS; }
long relex_lost_pages(void) { return 0; }
#endif
