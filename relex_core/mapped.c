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

/* Puts an empty page where one was lost; returns whether it could. */
static int replace_page(uintptr_t address) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    lost++; /* first: other threads may see the empty page at once */
    return mmap((void *)(address / page * page), page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    static atomic_int passed;
    const int error = errno;
    (void)context;
    if (info->si_code <= 0 || !is_reserved((uintptr_t)info->si_addr) || !replace_page((uintptr_t)info->si_addr)) {
        /* Not ours: the access is repeated, and meets whoever was asked before; the second time nobody, for they may ask us:
           Python's faulthandler does, enabled between two reservations. */
        if (passed++) signal(number, SIG_DFL);
        else sigaction(number, &before, NULL);
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

int relex_unmap(void *start, size_t bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap(start, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED ? errno : 0;
}

int relex_map_rows(char *start, size_t bytes, size_t pitch, const int *files, const int64_t *offsets, int rows, size_t count) {
    const int error = relex_unmap(start, bytes); /* all at once: row by row would interrupt the other threads T times */
    if (error) return error;
    for (int t = 0; t < rows; t++) /* madvise (WILLNEED, POPULATE_READ) costs more than the faults do that it saves */
        if (mmap(start + (size_t)t * pitch, count, PROT_READ, MAP_PRIVATE | MAP_FIXED, files[t], offsets[t]) == MAP_FAILED)
            return errno;
    return 0;
}

long relex_lost_pages(void) { return lost; }

#else
void *relex_reserve(size_t bytes) { (void)bytes; return NULL; }
void relex_release(void *start) { (void)start; }
int relex_unmap(void *start, size_t bytes) { (void)start; (void)bytes; return ENOSYS; }
int relex_map_rows(char *start, size_t bytes, size_t pitch, const int *files, const int64_t *offsets, int rows, size_t count) {
    (void)start; (void)bytes; (void)pitch; (void)files; (void)offsets; (void)rows; (void)count;
    return ENOSYS;
}
long relex_lost_pages(void) { return 0; }
#endif
