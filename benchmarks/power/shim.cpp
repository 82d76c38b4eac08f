// Preloaded into a process: records what it does to the files below a folder, and makes chosen calls
// fail. benchmarks/power/shim.py describes the records and calls the functions at the end.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <mutex>
#include <string>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

std::mutex mutex;            // makes the order of the records the order of the calls
char root[PATH_MAX] = {0};   // the folder, resolved; empty: off
int log_descriptor = -1;     // -1: nothing is recorded
long calls = 0;              // calls of the chosen kinds since faults() was called
long fail_at = 0;            // number of the call that fails; 0: none
int fail_error = 0;
bool fail_later = false;     // later calls fail as well
bool fail_short = false;     // a write that fails first writes a half of its bytes
char fail_kinds[64] = {0};

template <typename Function>
Function real(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}
#define REAL(name) static auto real_##name = real<decltype(&name)>(#name)

bool below(const std::string& path) {
    const size_t length = std::strlen(root);
    return length && path.compare(0, length, root) == 0 &&
           (path.size() == length || path[length] == '/');
}

std::string of_descriptor(int descriptor) {
    char name[64], found[PATH_MAX];
    std::snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(name, found, sizeof found);
    return length < 0 ? std::string() : std::string(found, static_cast<size_t>(length));
}

// The path with its folder resolved: the last part may be a link.
std::string resolved(int folder, const char* path) {
    std::string full = path;
    if (full.empty() || full[0] != '/') {
        char here[PATH_MAX];
        std::string base = folder == AT_FDCWD ? (getcwd(here, sizeof here) ? here : "")
                                              : of_descriptor(folder);
        full = base + "/" + full;
    }
    while (full.size() > 1 && full.back() == '/') full.pop_back();
    const size_t cut = full.rfind('/');
    char above[PATH_MAX];
    if (!realpath(full.substr(0, cut ? cut : 1).c_str(), above)) return full;
    return std::string(above) + full.substr(cut);
}

void put(const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size) {
        const long done = syscall(SYS_write, log_descriptor, at, size);
        if (done <= 0) {
            std::fprintf(stderr, "the record of calls cannot be written\n");
            abort();
        }
        at += done;
        size -= static_cast<size_t>(done);
    }
}

// kind, two numbers, and two parts with their lengths
void record(char kind, uint64_t one, uint64_t two, const std::string& first,
            const void* data = nullptr, size_t size = 0) {
    if (log_descriptor < 0) return;
    uint64_t head[5] = {static_cast<uint64_t>(kind), one, two, first.size(), size};
    std::string all(reinterpret_cast<char*>(head), sizeof head);
    all += first;
    if (size) all.append(static_cast<const char*>(data), size);
    put(all.data(), all.size());
}

uint64_t inode(int descriptor) {
    struct stat found;
    return fstat(descriptor, &found) ? 0 : found.st_ino;
}

uint64_t inode(const std::string& path) {
    struct stat found;
    return lstat(path.c_str(), &found) ? 0 : found.st_ino;
}

bool is_file(int descriptor) {
    struct stat found;
    return !fstat(descriptor, &found) && S_ISREG(found.st_mode);
}

// Whether this call is to fail; sets errno.
bool fails(char kind) {
    if (!std::strchr(fail_kinds, kind)) return false;
    ++calls;
    if (!fail_at || calls < fail_at || (calls > fail_at && !fail_later)) return false;
    errno = fail_error;
    return true;
}

bool concerns(int descriptor) { return root[0] && below(of_descriptor(descriptor)); }

// Records bytes that are in a file already, as they are there.
void record_bytes(int descriptor, off_t offset, size_t size) {
    char name[64];
    std::snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    const long again = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
    if (again < 0) abort();
    std::string data(size, '\0');
    size_t held = 0;
    while (held < size) {
        const ssize_t done = pread(static_cast<int>(again), &data[held], size - held,
                                   offset + static_cast<off_t>(held));
        if (done <= 0) break;
        held += static_cast<size_t>(done);
    }
    syscall(SYS_close, again);
    record('W', inode(descriptor), static_cast<uint64_t>(offset), "", data.data(), held);
}

template <typename Call>
int opened(int folder, const char* path, int flags, Call call) {
    const bool temporary = (flags & O_TMPFILE) == O_TMPFILE;
    if (!root[0] || !(flags & (O_CREAT | O_TRUNC) || temporary)) return call();
    std::lock_guard<std::mutex> guard(mutex);
    const std::string full = resolved(folder, path);
    if (!below(full)) return call();
    struct stat found;
    const bool there = !temporary && !stat(full.c_str(), &found);
    if (fails('O')) return -1;
    const int descriptor = call();
    if (descriptor < 0) return descriptor;
    if (temporary)
        record('A', inode(descriptor), 0, "");
    else if (!there)
        record('O', inode(descriptor), 0, full);
    else if (flags & O_TRUNC)
        record('T', inode(descriptor), 0, "");
    return descriptor;
}

mode_t mode_of(int flags, va_list given) {
    return flags & (O_CREAT | O_TMPFILE) ? static_cast<mode_t>(va_arg(given, int)) : 0;
}

// A call that writes; `at` < 0: at the descriptor's position.
template <typename Call>
ssize_t written(int descriptor, off_t at, size_t size, Call call) {
    if (!root[0]) return call(size);
    std::lock_guard<std::mutex> guard(mutex);
    if (!concerns(descriptor) || !is_file(descriptor)) return call(size);
    if (fails('W')) {
        if (!fail_short || size < 2 || calls != fail_at) return -1;
        size /= 2;
    }
    const ssize_t done = call(size);
    if (done > 0 && log_descriptor >= 0) {
        const off_t end = at < 0 ? lseek(descriptor, 0, SEEK_CUR) : at + done;
        record_bytes(descriptor, end - done, static_cast<size_t>(done));
    }
    return done;
}

template <typename Call>
int synced(int descriptor, Call call) {
    if (!root[0]) return call();
    std::lock_guard<std::mutex> guard(mutex);
    if (!concerns(descriptor)) return call();
    if (fails('S')) return -1;
    const int done = call();
    if (!done) record('S', inode(descriptor), 0, "");
    return done;
}

template <typename Call>
int cut(int descriptor, off_t size, Call call) {
    if (!root[0]) return call();
    std::lock_guard<std::mutex> guard(mutex);
    if (!concerns(descriptor)) return call();
    if (fails('T')) return -1;
    const int done = call();
    if (!done) record('T', inode(descriptor), static_cast<uint64_t>(size), "");
    return done;
}

template <typename Call>
int grown(int descriptor, off_t end, Call call) {
    if (!root[0]) return call();
    std::lock_guard<std::mutex> guard(mutex);
    if (!concerns(descriptor)) return call();
    if (fails('T')) return -1;
    const int done = call();
    struct stat found;
    if (!done && !fstat(descriptor, &found) && found.st_size >= end)
        record('T', inode(descriptor), static_cast<uint64_t>(found.st_size), "");
    return done;
}

// A call that changes one name.
template <typename Call>
int named(char kind, int folder, const char* path, const char* target, Call call) {
    if (!root[0]) return call();
    std::lock_guard<std::mutex> guard(mutex);
    const std::string full = resolved(folder, path);
    if (!below(full)) return call();
    if (fails(kind)) return -1;
    const int done = call();
    if (!done) record(kind, inode(full), 0, full, target, target ? std::strlen(target) : 0);
    return done;
}

// A call that changes two names.
template <typename Call>
int moved(char kind, int from, const char* old, int to, const char* fresh, Call call) {
    if (!root[0]) return call();
    std::lock_guard<std::mutex> guard(mutex);
    const std::string source = resolved(from, old), target = resolved(to, fresh);
    if (!below(source) && !below(target)) return call();
    if (fails(kind)) return -1;
    const int done = call();
    if (!done) record(kind, 0, 0, source, target.data(), target.size());
    return done;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
    REAL(open);
    va_list given;
    va_start(given, flags);
    const mode_t mode = mode_of(flags, given);
    va_end(given);
    return opened(AT_FDCWD, path, flags, [&] { return real_open(path, flags, mode); });
}
int open64(const char* path, int flags, ...) {
    REAL(open64);
    va_list given;
    va_start(given, flags);
    const mode_t mode = mode_of(flags, given);
    va_end(given);
    return opened(AT_FDCWD, path, flags, [&] { return real_open64(path, flags, mode); });
}
int openat(int folder, const char* path, int flags, ...) {
    REAL(openat);
    va_list given;
    va_start(given, flags);
    const mode_t mode = mode_of(flags, given);
    va_end(given);
    return opened(folder, path, flags, [&] { return real_openat(folder, path, flags, mode); });
}
int openat64(int folder, const char* path, int flags, ...) {
    REAL(openat64);
    va_list given;
    va_start(given, flags);
    const mode_t mode = mode_of(flags, given);
    va_end(given);
    return opened(folder, path, flags, [&] { return real_openat64(folder, path, flags, mode); });
}
int creat(const char* path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) {
    return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
FILE* fopen(const char* path, const char* mode) {
    REAL(fopen);
    FILE* file = nullptr;
    const int flags = mode[0] == 'r' ? 0 : mode[0] == 'w' ? O_CREAT | O_TRUNC : O_CREAT;
    opened(AT_FDCWD, path, flags, [&] {
        file = real_fopen(path, mode);
        return file ? fileno(file) : -1;
    });
    return file;
}

// Buffers are emptied after each call, so that what it wrote is seen here.
size_t fwrite(const void* data, size_t size, size_t count, FILE* file) {
    REAL(fwrite);
    if (!root[0]) return real_fwrite(data, size, count, file);
    std::lock_guard<std::mutex> guard(mutex);
    const int descriptor = fileno(file);
    if (!concerns(descriptor) || !is_file(descriptor)) return real_fwrite(data, size, count, file);
    if (fails('W')) return 0;
    fflush(file);
    const off_t start = lseek(descriptor, 0, SEEK_CUR);
    const size_t done = real_fwrite(data, size, count, file);
    fflush(file);
    const off_t end = lseek(descriptor, 0, SEEK_CUR);
    if (end > start && log_descriptor >= 0)
        record_bytes(descriptor, start, static_cast<size_t>(end - start));
    return done;
}
ssize_t write(int descriptor, const void* data, size_t size) {
    REAL(write);
    return written(descriptor, -1, size, [&](size_t n) { return real_write(descriptor, data, n); });
}
ssize_t pwrite(int descriptor, const void* data, size_t size, off_t at) {
    REAL(pwrite);
    return written(descriptor, at, size,
                   [&](size_t n) { return real_pwrite(descriptor, data, n, at); });
}
ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t at) {
    REAL(pwrite64);
    return written(descriptor, at, size,
                   [&](size_t n) { return real_pwrite64(descriptor, data, n, at); });
}
ssize_t writev(int descriptor, const struct iovec* parts, int count) {
    REAL(writev);
    return written(descriptor, -1, 0, [&](size_t) { return real_writev(descriptor, parts, count); });
}
ssize_t pwritev(int descriptor, const struct iovec* parts, int count, off_t at) {
    REAL(pwritev);
    return written(descriptor, at, 0,
                   [&](size_t) { return real_pwritev(descriptor, parts, count, at); });
}
ssize_t pwritev64(int descriptor, const struct iovec* parts, int count, off64_t at) {
    REAL(pwritev64);
    return written(descriptor, at, 0,
                   [&](size_t) { return real_pwritev64(descriptor, parts, count, at); });
}
ssize_t sendfile(int to, int from, off_t* at, size_t size) {
    REAL(sendfile);
    return written(to, -1, size, [&](size_t n) { return real_sendfile(to, from, at, n); });
}
ssize_t sendfile64(int to, int from, off64_t* at, size_t size) {
    REAL(sendfile64);
    return written(to, -1, size, [&](size_t n) { return real_sendfile64(to, from, at, n); });
}
ssize_t copy_file_range(int from, off64_t* at, int to, off64_t* there, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return written(to, there ? *there : -1, size, [&](size_t n) {
        return real_copy_file_range(from, at, to, there, n, flags);
    });
}

int fsync(int descriptor) {
    REAL(fsync);
    return synced(descriptor, [&] { return real_fsync(descriptor); });
}
int fdatasync(int descriptor) {
    REAL(fdatasync);
    return synced(descriptor, [&] { return real_fdatasync(descriptor); });
}
int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    return cut(descriptor, size, [&] { return real_ftruncate(descriptor, size); });
}
int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    return cut(descriptor, size, [&] { return real_ftruncate64(descriptor, size); });
}
int truncate(const char* path, off_t size) {
    const int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) return -1;
    const int done = ftruncate(descriptor, size), error = errno;
    close(descriptor);
    errno = error;
    return done;
}
int truncate64(const char* path, off64_t size) { return truncate(path, size); }
int fallocate(int descriptor, int mode, off_t at, off_t size) {
    REAL(fallocate);
    return grown(descriptor, at + size, [&] { return real_fallocate(descriptor, mode, at, size); });
}
int fallocate64(int descriptor, int mode, off64_t at, off64_t size) {
    REAL(fallocate64);
    return grown(descriptor, at + size,
                 [&] { return real_fallocate64(descriptor, mode, at, size); });
}
int posix_fallocate(int descriptor, off_t at, off_t size) {
    REAL(posix_fallocate);
    return grown(descriptor, at + size, [&] { return real_posix_fallocate(descriptor, at, size); });
}
int posix_fallocate64(int descriptor, off64_t at, off64_t size) {
    REAL(posix_fallocate64);
    return grown(descriptor, at + size,
                 [&] { return real_posix_fallocate64(descriptor, at, size); });
}

int mkdir(const char* path, mode_t mode) {
    REAL(mkdir);
    return named('M', AT_FDCWD, path, nullptr, [&] { return real_mkdir(path, mode); });
}
int mkdirat(int folder, const char* path, mode_t mode) {
    REAL(mkdirat);
    return named('M', folder, path, nullptr, [&] { return real_mkdirat(folder, path, mode); });
}
int symlink(const char* target, const char* path) {
    REAL(symlink);
    return named('Y', AT_FDCWD, path, target, [&] { return real_symlink(target, path); });
}
int symlinkat(const char* target, int folder, const char* path) {
    REAL(symlinkat);
    return named('Y', folder, path, target, [&] { return real_symlinkat(target, folder, path); });
}
int unlink(const char* path) {
    REAL(unlink);
    return named('U', AT_FDCWD, path, nullptr, [&] { return real_unlink(path); });
}
int unlinkat(int folder, const char* path, int flags) {
    REAL(unlinkat);
    return named('U', folder, path, nullptr, [&] { return real_unlinkat(folder, path, flags); });
}
int rmdir(const char* path) {
    REAL(rmdir);
    return named('U', AT_FDCWD, path, nullptr, [&] { return real_rmdir(path); });
}
int remove(const char* path) {
    REAL(remove);
    return named('U', AT_FDCWD, path, nullptr, [&] { return real_remove(path); });
}

int rename(const char* old, const char* fresh) {
    REAL(rename);
    return moved('R', AT_FDCWD, old, AT_FDCWD, fresh, [&] { return real_rename(old, fresh); });
}
int renameat(int from, const char* old, int to, const char* fresh) {
    REAL(renameat);
    return moved('R', from, old, to, fresh, [&] { return real_renameat(from, old, to, fresh); });
}
int renameat2(int from, const char* old, int to, const char* fresh, unsigned flags) {
    REAL(renameat2);
    return moved(flags & RENAME_EXCHANGE ? 'X' : 'R', from, old, to, fresh,
                 [&] { return real_renameat2(from, old, to, fresh, flags); });
}
int link(const char* old, const char* fresh) {
    REAL(link);
    return moved('L', AT_FDCWD, old, AT_FDCWD, fresh, [&] { return real_link(old, fresh); });
}
int linkat(int from, const char* old, int to, const char* fresh, int flags) {
    REAL(linkat);
    return moved('L', from, old, to, fresh,
                 [&] { return real_linkat(from, old, to, fresh, flags); });
}

// What Python calls.

// Concern a folder from now on (null: none), and record into a file (null: do not).
int power_watch(const char* folder, const char* log) {
    std::lock_guard<std::mutex> guard(mutex);
    if (log_descriptor >= 0) syscall(SYS_close, log_descriptor);
    log_descriptor = -1;
    root[0] = 0;
    fail_at = 0;
    fail_kinds[0] = 0;
    if (!folder) return 0;
    if (log) {
        log_descriptor = static_cast<int>(
            syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600));
        if (log_descriptor < 0) return -1;
    }
    return realpath(folder, root) ? 0 : -1;
}
// Record a remark, in its order among the calls.
void power_note(const char* text) {
    std::lock_guard<std::mutex> guard(mutex);
    record('N', 0, 0, text);
}
// Make the `at`-th call of these kinds fail from now on (0: none), and later ones.
void power_faults(const char* kinds, long at, int error, int later, int cut_short) {
    std::lock_guard<std::mutex> guard(mutex);
    std::snprintf(fail_kinds, sizeof fail_kinds, "%s", kinds);
    calls = 0;
    fail_at = at;
    fail_error = error;
    fail_later = later;
    fail_short = cut_short;
}
// Calls of these kinds since then.
long power_calls() {
    std::lock_guard<std::mutex> guard(mutex);
    return calls;
}
}
