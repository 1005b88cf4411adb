/* Stands between a process and the C library's file calls: records them, and kills or fails at a given one.
 *
 * Loaded by LD_PRELOAD. It looks only at files below DISKSHIM_ROOT. What it does is said by a page that it shares with
 * whoever controls it (the file DISKSHIM_CONTROL, layout `struct control`, see diskshim.py), so it can change while the
 * process runs, and the count of calls goes over all threads and processes.
 *
 * A recorded call is logged after it happened, and all but syncs happen one at a time, so the order of the log is the
 * order of the calls. A sync is logged when it begins and when it ends: what was logged before it began is what it
 * makes durable.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    CREATE = 1, WRITE = 2, TRUNCATE = 4, ALLOCATE = 8, SYNC = 16, RENAME = 32, UNLINK = 64, MKDIR = 128, OPEN = 256,
    READ = 512
};

enum op {
    LOG_OPEN = 1, LOG_CLOSE, LOG_WRITE, LOG_TRUNCATE, LOG_ALLOCATE, LOG_SYNC_BEGIN, LOG_SYNC_END, LOG_RENAME,
    LOG_UNLINK, LOG_MKDIR, LOG_MMAP
};

struct control {
    _Atomic uint64_t calls;    /* that change something, so far */
    _Atomic uint64_t kill_at;  /* kill in this one, 0: never */
    _Atomic uint32_t tear;     /* and do so much of it before, if it is a write: 0 nothing, 1 half, 2 all */
    _Atomic uint32_t kinds;    /* which fail, 0: none */
    _Atomic int32_t error;     /* with this errno */
    _Atomic uint32_t partial;  /* a failing write writes so many bytes before */
    _Atomic uint64_t matched;  /* calls that might have failed, so far */
    _Atomic uint64_t from;     /* fail those numbered from here (first: 1) */
    _Atomic uint64_t until;    /* to here, exclusive */
    _Atomic uint64_t failed;   /* how many did */
    _Atomic uint32_t delay_us; /* of each sync */
    _Atomic uint32_t unsynced; /* do not really sync */
    char where[64];            /* only of files with this in their paths */
};

struct record {
    uint8_t op, dsync, pad[2];
    int32_t fd, result;
    uint32_t length;
    int64_t a, b;
};

#define FDS 65536
static char *paths[FDS];    /* of the files below the root that are open */
static uint8_t dsync[FDS], mapped[FDS];
static char root[PATH_MAX];
static size_t root_length;
static struct control *control;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void)
{
    const char *where = getenv("DISKSHIM_ROOT"), *page = getenv("DISKSHIM_CONTROL");
    if (!where || !page || !realpath(where, root)) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, page, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED) return;
    root_length = strlen(root);
    control = map;
}

/* Begin to record into a file; NULL: stop. For the program itself, by ctypes. */
void diskshim_record(const char *path)
{
    pthread_mutex_lock(&lock);
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    pthread_mutex_unlock(&lock);
}

static int is_below(const char *path)
{
    return control && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static const char *absolute(const char *path, char *buffer)
{
    if (path[0] == '/') return path;
    char cwd[PATH_MAX / 2];
    if (!getcwd(cwd, sizeof cwd)) return path;
    snprintf(buffer, PATH_MAX, "%s/%s", cwd, path);
    return buffer;
}

static const char *path_of(int fd)
{
    return fd >= 0 && fd < FDS ? paths[fd] : NULL;
}

static void put(const void *data, size_t length)
{
    const char *next = data;
    while (length) {
        ssize_t written = syscall(SYS_write, log_fd, next, length);
        if (written <= 0) abort();
        next += written;
        length -= (size_t)written;
    }
}

static void note(enum op op, int fd, int64_t a, int64_t b, int result, const void *data, size_t length)
{
    if (log_fd < 0) return;
    struct record record = {.op = (uint8_t)op, .dsync = fd >= 0 && fd < FDS ? dsync[fd] : 0, .fd = fd,
                            .result = result, .length = (uint32_t)length, .a = a, .b = b};
    put(&record, sizeof record);
    if (length) put(data, length);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call that changes something. Whether the process is to be killed in it. */
static int is_last(void)
{
    uint64_t number = atomic_fetch_add(&control->calls, 1) + 1;
    return number == atomic_load(&control->kill_at);
}

/* The errno with which a call is to fail, or 0. */
static int failure(enum kind kind, const char *path)
{
    if (!(atomic_load(&control->kinds) & kind) || !strstr(path, control->where)) return 0;
    uint64_t number = atomic_fetch_add(&control->matched, 1) + 1;
    if (number < atomic_load(&control->from) || number >= atomic_load(&control->until)) return 0;
    atomic_fetch_add(&control->failed, 1);
    return atomic_load(&control->error);
}

/* The common way of all calls but writes and syncs: `call` is done, unless the process dies or the call fails. */
#define CHANGE(kind, path, call, logged) do { \
        pthread_mutex_lock(&lock); \
        if (is_last()) die(); \
        int error = failure(kind, path); \
        result = error ? (errno = error, -1) : (call); \
        int kept = errno; \
        if (result == 0) { logged; } \
        pthread_mutex_unlock(&lock); \
        errno = kept; \
    } while (0)

/* -- writing ------------------------------------------------------------------------------------------------------ */

static ssize_t do_write(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t size = 0, done = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *data = malloc(size ? size : 1);
    for (int i = 0; i < count; i++) {
        memcpy(data + done, parts[i].iov_base, parts[i].iov_len);
        done += parts[i].iov_len;
    }
    pthread_mutex_lock(&lock);
    int at_place = offset >= 0;
    if (!at_place) offset = lseek(fd, 0, SEEK_CUR);
    int last = is_last();
    int error = failure(WRITE, paths[fd]);
    size_t wanted = size;
    if (last) wanted = control->tear == 0 ? 0 : control->tear == 1 ? size / 2 : size;
    else if (error) wanted = control->partial < size ? control->partial : size;
    ssize_t result = wanted ? syscall(SYS_pwrite64, fd, data, wanted, offset) : 0;
    int kept = errno;
    if (last) die();
    if (result > 0) {
        if (!at_place) lseek(fd, offset + result, SEEK_SET);
        note(LOG_WRITE, fd, offset, 0, 0, data, (size_t)result);
    }
    pthread_mutex_unlock(&lock);
    if (dsync[fd] && result > 0 && !error) {
        uint32_t delay = atomic_load(&control->delay_us);
        if (delay) usleep(delay);
        pthread_mutex_lock(&lock);
        note(LOG_SYNC_END, fd, offset, result, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    free(data);
    errno = kept;
    if (error && !(result > 0 && (size_t)result < size && control->partial)) {
        errno = error;
        return -1;
    }
    return result;
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (!path_of(fd)) return syscall(SYS_write, fd, data, size);
    struct iovec part = {(void *)data, size};
    return do_write(fd, &part, 1, -1);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (!path_of(fd)) return syscall(SYS_writev, fd, parts, count);
    return do_write(fd, parts, count, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (!path_of(fd)) return syscall(SYS_pwrite64, fd, data, size, offset);
    struct iovec part = {(void *)data, size};
    return do_write(fd, &part, 1, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return pwrite(fd, data, size, offset);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    if (!path_of(fd)) {
        REAL(pwritev2);
        return real(fd, parts, count, offset, flags);
    }
    return do_write(fd, parts, count, offset);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return pwritev2(fd, parts, count, offset, flags);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return pwritev2(fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev2(fd, parts, count, offset, 0);
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    int error = path_of(fd) ? failure(READ, paths[fd]) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_pread64, fd, data, size, offset);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    return pread(fd, data, size, offset);
}

/* -- syncing ------------------------------------------------------------------------------------------------------ */

/* Nobody sees what is written through a map: log all that is in the file now. */
static void note_content(int fd)
{
    struct stat status;
    if (fstat(fd, &status)) abort();
    char *data = malloc((size_t)status.st_size + 1);
    ssize_t size = syscall(SYS_pread64, fd, data, status.st_size, 0);
    note(LOG_SYNC_BEGIN, fd, 0, 0, 0, data, size > 0 ? (size_t)size : 0);
    free(data);
}

static int do_sync(int fd, long number)
{
    pthread_mutex_lock(&lock);
    if (is_last()) die();
    int error = failure(SYNC, paths[fd]);
    if (mapped[fd] && log_fd >= 0) note_content(fd);
    else note(LOG_SYNC_BEGIN, fd, 0, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    uint32_t delay = atomic_load(&control->delay_us);
    if (delay) usleep(delay);
    int result = error ? -1 : atomic_load(&control->unsynced) ? 0 : (int)syscall(number, fd);
    int kept = error ? error : errno;
    pthread_mutex_lock(&lock);
    note(LOG_SYNC_END, fd, -1, 0, result, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = kept;
    return result;
}

int fsync(int fd)
{
    return path_of(fd) ? do_sync(fd, SYS_fsync) : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return path_of(fd) ? do_sync(fd, SYS_fdatasync) : (int)syscall(SYS_fdatasync, fd);
}

/* -- sizes -------------------------------------------------------------------------------------------------------- */

int ftruncate(int fd, off_t size)
{
    if (!path_of(fd)) return (int)syscall(SYS_ftruncate, fd, size);
    int result;
    CHANGE(TRUNCATE, paths[fd], (int)syscall(SYS_ftruncate, fd, size), note(LOG_TRUNCATE, fd, size, 0, 0, NULL, 0));
    return result;
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    REAL(posix_fallocate);
    if (!path_of(fd)) return real(fd, offset, length);
    int result;
    CHANGE(ALLOCATE, paths[fd], (errno = real(fd, offset, length)) ? -1 : 0,
           note(LOG_ALLOCATE, fd, offset, length, 0, NULL, 0));
    return result ? errno : 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return posix_fallocate(fd, offset, length);
}

/* -- names -------------------------------------------------------------------------------------------------------- */

static int do_open(int directory, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *full = directory == AT_FDCWD || path[0] == '/' ? absolute(path, buffer) : "";
    if (!is_below(full) || (flags & O_PATH)) return (int)syscall(SYS_openat, directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    int creates = (flags & O_CREAT) && syscall(SYS_faccessat, AT_FDCWD, full, F_OK) != 0;
    int changes = creates || (flags & O_TRUNC);
    if (changes && is_last()) die();
    int error = failure(creates ? CREATE : OPEN, full);
    int fd = error ? -1 : (int)syscall(SYS_openat, directory, path, flags, mode);
    int kept = error ? error : errno;
    if (fd >= 0 && fd < FDS) {
        free(paths[fd]);
        paths[fd] = strdup(full);
        dsync[fd] = (flags & O_DSYNC) != 0;
        note(LOG_OPEN, fd, flags, 0, creates, full, strlen(full));
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags)
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE(flags)
    return do_open(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return do_open(directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return do_open(directory, path, flags | O_LARGEFILE, mode);
}

int __open_2(const char *path, int flags)
{
    return do_open(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return do_open(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}

int close(int fd)
{
    if (!path_of(fd)) return (int)syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    note(LOG_CLOSE, fd, 0, 0, 0, NULL, 0);
    free(paths[fd]);
    paths[fd] = NULL;
    dsync[fd] = mapped[fd] = 0;
    int result = (int)syscall(SYS_close, fd);
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
    return result;
}

int rename(const char *from, const char *to)
{
    char buffer[PATH_MAX], other[PATH_MAX];
    const char *source = absolute(from, buffer), *target = absolute(to, other);
    if (!is_below(target)) return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    char both[2 * PATH_MAX];
    int length = snprintf(both, sizeof both, "%s%c%s", source, 0, target);
    int result;
    CHANGE(RENAME, target, (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0),
           note(LOG_RENAME, -1, 0, 0, 0, both, (size_t)length));
    return result;
}

int unlink(const char *path)
{
    char buffer[PATH_MAX];
    const char *full = absolute(path, buffer);
    if (!is_below(full)) return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    int result;
    CHANGE(UNLINK, full, (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0),
           note(LOG_UNLINK, -1, 0, 0, 0, full, strlen(full)));
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *full = absolute(path, buffer);
    if (!is_below(full)) return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    int result;
    CHANGE(MKDIR, full, (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode),
           note(LOG_MKDIR, -1, 0, 0, 0, full, strlen(full)));
    return result;
}

/* -- maps --------------------------------------------------------------------------------------------------------- */

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *map = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    if (map != MAP_FAILED && path_of(fd) && (protection & PROT_WRITE) && (flags & MAP_SHARED)) {
        pthread_mutex_lock(&lock);
        mapped[fd] = 1;
        note(LOG_MMAP, fd, offset, (int64_t)length, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    return map;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}
