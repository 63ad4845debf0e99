// A CUDA driver without a GPU, as far as `backend/cuda` calls it: device memory is memory of the host that
// other processes can open, a stream is a thread, and the kernel runs as C++. It is strict where a GPU is
// merely undefined: what must not be done ends the process with a word on why, and so does anything that
// is still held at the end.
//
// Compiled with -DNVRTC it is the compiler of kernels instead, which checks its arguments and returns an
// image that only this driver takes.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <fcntl.h>
#include <thread>
#include <tuple>
#include <unistd.h>

#define BLOCKS_MAX 192
static const char IMAGE[] = "\x7f" "ELF of no GPU";

[[noreturn]] static void broken(const char *what) {
    fprintf(stderr, "VIOLATION: %s\n", what);
    _exit(3);
}

#ifdef NVRTC

extern "C" {
int nvrtcCreateProgram(void **program, const char *source, const char *, int, const char **, const char **) {
    if (!strstr(source, "#define BLOCKS_MAX 192\n")) broken("kernel and driver differ in BLOCKS_MAX");
    *program = new std::string(source);
    return 0;
}
int nvrtcCompileProgram(void *, int count, const char **options) {
    if (count < 1 || strcmp(options[0], "--gpu-architecture=sm_90")) broken("not compiled for the device");
    return 0;
}
int nvrtcGetCUBINSize(void *, size_t *len) { return *len = sizeof IMAGE, 0; }
int nvrtcGetCUBIN(void *, char *image) { return memcpy(image, IMAGE, sizeof IMAGE), 0; }
int nvrtcGetProgramLogSize(void *, size_t *len) { return *len = 1, 0; }
int nvrtcGetProgramLog(void *, char *log) { return *log = 0, 0; }
int nvrtcDestroyProgram(void **program) { return delete (std::string *)*program, 0; }
}

#else

// The kernel, one thread of the grid after the other.
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Place { unsigned x, y, z; };
static thread_local Place blockIdx, threadIdx, blockDim, gridDim;
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#include "../../src/backend/cuda/kernels.cu"

namespace {

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, LAUNCH_FAILED = 719 };

struct Memory { size_t len; int fd; bool pinned; bool opened; };

struct Stream {
    std::deque<std::function<void()>> queue;
    std::mutex mutex;
    std::condition_variable changed;
    bool busy = false, ended = false;
    std::thread thread{[this] { run(); }};

    void push(std::function<void()> work) {
        std::lock_guard lock(mutex);
        queue.push_back(std::move(work));
        changed.notify_all();
    }
    void run();
    void wait() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return queue.empty() && !busy; });
    }
};

std::mutex mutex;
std::map<uintptr_t, Memory> memories;
size_t used;
const size_t TOTAL = size_t(2) << 30;
int contexts, streams, modules;
std::atomic<bool> lost;
thread_local std::deque<void *> current;
thread_local bool tells;
int the_context;

void Stream::run() {
    for (;;) {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return ended || !queue.empty(); });
        if (queue.empty()) return;
        auto work = std::move(queue.front());
        queue.pop_front();
        busy = true;
        lock.unlock();
        if (!lost) work();
        lock.lock();
        busy = false;
        changed.notify_all();
    }
}

// What every call that works in a context checks.
bool entered() {
    if (tells) broken("a call from the thread that tells of completed copies");
    return !current.empty() && current.back() == &the_context;
}
#define ENTERED if (!entered()) return INVALID_CONTEXT; if (lost) return LAUNCH_FAILED

int allocate(uintptr_t *address, size_t len, bool pinned, int fd, bool opened) {
    std::lock_guard lock(mutex);
    if (len == 0) return INVALID_VALUE;
    if (!opened && (len > TOTAL || used + len > TOTAL)) return OUT_OF_MEMORY;
    if (fd < 0 && (fd = memfd_create("device", MFD_CLOEXEC)) >= 0 && ftruncate(fd, len)) return OUT_OF_MEMORY;
    void *at = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || at == MAP_FAILED) return OUT_OF_MEMORY;
    // Never clean: whoever wants zeros writes them.
    if (!opened) memset(at, 0xEE, len), used += len;
    memories[*address = (uintptr_t)at] = {len, fd, pinned, opened};
    return OK;
}

int release(uintptr_t address, bool pinned, bool opened) {
    std::lock_guard lock(mutex);
    auto found = memories.find(address);
    if (found == memories.end() || found->second.pinned != pinned || found->second.opened != opened)
        broken("memory is freed that is none of its kind");
    if (!opened) used -= found->second.len;
    // Whoever still touches it ends here.
    munmap((void *)address, found->second.len);
    close(found->second.fd);
    memories.erase(found);
    return OK;
}

// Host memory that is not pinned is nobody's.
bool known(uintptr_t address, size_t len, bool needed) {
    std::lock_guard lock(mutex);
    auto above = memories.upper_bound(address);
    if (above == memories.begin()) return !needed;
    auto &[base, memory] = *std::prev(above);
    if (address >= base + memory.len) return !needed;
    return address + len <= base + memory.len;
}

void copy(uintptr_t to, uintptr_t from, size_t len, bool needed) {
    if (!known(to, len, needed) || !known(from, len, needed)) broken("a copy of what is not there");
    memmove((void *)to, (void *)from, len);
}

struct AtEnd {
    ~AtEnd() {
        if (lost) return;
        if (!memories.empty() || contexts || streams || modules) broken("something is held at the end");
    }
} at_end;

} // namespace

extern "C" {
int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int *version) { return *version = 12080, OK; }
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == LAUNCH_FAILED ? "it is lost" : "an error";
    return OK;
}
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
int cuDeviceGetName(char *name, int len, int) { return snprintf(name, len, "no GPU"), OK; }
int cuDeviceGetUuid_v2(char *uuid, int) { return memset(uuid, 9, 16), OK; }
int cuDeviceGetAttribute(int *value, int which, int) { return *value = which == 75 ? 9 : 0, OK; }
int cuDevicePrimaryCtxRetain(void **context, int) { return contexts++, *context = &the_context, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return contexts--, OK; }
int cuCtxPushCurrent_v2(void *context) {
    if (tells) broken("a context is entered on the thread that tells of completed copies");
    return current.push_back(context), OK;
}
int cuCtxPopCurrent_v2(void **context) {
    if (current.empty()) broken("a context is left that was not entered");
    return *context = current.back(), current.pop_back(), OK;
}
int cuStreamCreate(Stream **stream, unsigned) { ENTERED; return streams++, *stream = new Stream, OK; }
int cuStreamDestroy_v2(Stream *stream) {
    ENTERED;
    {
        std::lock_guard lock(stream->mutex);
        stream->ended = true;
        stream->changed.notify_all();
    }
    stream->thread.join();
    return streams--, delete stream, OK;
}
int cuStreamQuery(Stream *) { ENTERED; return OK; }
int cuStreamSynchronize(Stream *stream) { ENTERED; return stream->wait(), OK; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTERED;
    std::lock_guard lock(mutex);
    return *free = TOTAL - used, *total = TOTAL, OK;
}
int cuMemAlloc_v2(uintptr_t *address, size_t len) { ENTERED; return allocate(address, len, false, -1, false); }
int cuMemFree_v2(uintptr_t address) { ENTERED; return release(address, false, false); }
int cuMemHostAlloc(uintptr_t *address, size_t len, unsigned flags) {
    ENTERED;
    if (flags != 3) broken("pinned memory that not every context and device reaches");
    return allocate(address, len, true, -1, false);
}
int cuMemFreeHost(uintptr_t address) { ENTERED; return release(address, true, false); }
int cuMemsetD8Async(uintptr_t address, unsigned char byte, size_t len, Stream *stream) {
    ENTERED;
    return stream->push([=] { memset((void *)address, byte, len); }), OK;
}
int cuMemGetAddressRange_v2(uintptr_t *base, size_t *len, uintptr_t address) {
    ENTERED;
    std::lock_guard lock(mutex);
    return *base = address, *len = memories.at(address).len, OK;
}
int cuMemcpyAsync(uintptr_t to, uintptr_t from, size_t len, Stream *stream) {
    ENTERED;
    return stream->push([=] { copy(to, from, len, false), lost = len == 666; }), OK;
}
struct Attributes { unsigned order, hints[4], flags; };
static int batch(uintptr_t *to, uintptr_t *from, size_t *len, size_t count, Attributes *how, size_t *starts,
                 size_t kinds, Stream *stream) {
    ENTERED;
    if (!stream || kinds != 1 || *starts != 0 || how->order != 1) broken("a batch without order or stream");
    for (size_t i = 0; i < count; i++) {
        auto [a, b, n] = std::tuple(to[i], from[i], len[i]);
        if (n == 0) return INVALID_VALUE;
        stream->push([=] { copy(a, b, n, true); });
    }
    return OK;
}
#ifdef CUDA_13
int cuMemcpyBatchAsync_v2(uintptr_t *to, uintptr_t *from, size_t *len, size_t count, Attributes *how,
                          size_t *starts, size_t kinds, Stream *stream) {
    return batch(to, from, len, count, how, starts, kinds, stream);
}
#else
int cuMemcpyBatchAsync(uintptr_t *to, uintptr_t *from, size_t *len, size_t count, Attributes *how,
                       size_t *starts, size_t kinds, size_t *failed, Stream *stream) {
    *failed = SIZE_MAX;
    return batch(to, from, len, count, how, starts, kinds, stream);
}
#endif
int cuLaunchHostFunc(Stream *stream, void (*call)(void *), void *argument) {
    ENTERED;
    stream->push([=] { tells = true, call(argument), tells = false; });
    return OK;
}
int cuModuleLoadData(void **module, const void *image) {
    ENTERED;
    if (memcmp(image, IMAGE, sizeof IMAGE)) return 200;
    return modules++, *module = &modules, OK;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    if (strcmp(name, "copy_blocks")) return 500;
    return *function = (void *)&copy_blocks, OK;
}
int cuModuleUnload(void *) { ENTERED; return modules--, OK; }
int cuLaunchKernel(void *, unsigned gx, unsigned gy, unsigned, unsigned bx, unsigned, unsigned, unsigned,
                   Stream *stream, void **parameters, void **) {
    ENTERED;
    Table table = *(Table *)parameters[0];
    if (gx == 0 || gx > BLOCKS_MAX || sizeof table > 4096) broken("a grid of another size than its table");
    auto run = [=] {
        for (unsigned i = 0; i < gx; i++)
            if (!known(table.source[i], table.len[i], true) || !known(table.target[i], table.len[i], true))
                broken("a kernel that touches what is not there");
        gridDim = {gx, gy, 1}, blockDim = {bx, 1, 1};
        for (blockIdx = {0, 0, 0}; blockIdx.x < gx; blockIdx.x++)
            for (blockIdx.y = 0; blockIdx.y < gy; blockIdx.y++)
                for (threadIdx = {0, 0, 0}; threadIdx.x < bx; threadIdx.x++) copy_blocks(table);
    };
    return stream->push(run), OK;
}
struct Handle { int pid, fd; size_t len; char rest[48]; };
int cuIpcGetMemHandle(Handle *handle, uintptr_t address) {
    ENTERED;
    std::lock_guard lock(mutex);
    auto found = memories.find(address);
    if (found == memories.end() || found->second.pinned) return INVALID_VALUE;
    return *handle = {getpid(), found->second.fd, found->second.len, {}}, OK;
}
int cuIpcOpenMemHandle_v2(uintptr_t *address, Handle handle, unsigned flags) {
    ENTERED;
    if (flags != 1) return INVALID_VALUE;
    if (handle.pid == getpid()) return INVALID_CONTEXT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? INVALID_VALUE : allocate(address, handle.len, false, fd, true);
}
int cuIpcCloseMemHandle(uintptr_t address) { ENTERED; return release(address, false, true); }
}

#endif
