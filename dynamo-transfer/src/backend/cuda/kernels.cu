// Copies up to BLOCKS_MAX blocks. blockIdx.x is the block; blockIdx.y is its share of the steps, so that
// few large blocks keep the device as busy as many small ones. Sources and targets are memory of the
// device or pinned memory of the host, at any alignment.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// The same as `Table` in kernel.rs; it goes as a parameter, of which 4096 bytes are allowed.
struct Table {
    u64 source[BLOCKS_MAX];
    u64 target[BLOCKS_MAX];
    u32 len[BLOCKS_MAX];
};

// Each thread has this many loads under way before its first store.
#define UNROLL 4

// Copies `count` units of T, this thread its share.
template <typename T>
__device__ __forceinline__ void copy_units(u64 source, u64 target, u64 count, u64 first, u64 stride) {
    const T *from = reinterpret_cast<const T *>(source);
    T *to = reinterpret_cast<T *>(target);
    u64 at = first;
    for (; at + (UNROLL - 1) * stride < count; at += UNROLL * stride) {
        T held[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) held[i] = from[at + i * stride];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) to[at + i * stride] = held[i];
    }
    for (; at < count; at += stride) to[at] = from[at];
}

extern "C" __global__ void copy_blocks(const __grid_constant__ Table table) {
    const u64 source = table.source[blockIdx.x];
    const u64 target = table.target[blockIdx.x];
    const u64 len = table.len[blockIdx.x];
    const u64 first = (u64)blockIdx.y * blockDim.x + threadIdx.x;
    const u64 stride = (u64)gridDim.y * blockDim.x;
    // The widest unit at which source and target are aligned alike; up to it bytes go alone.
    const u64 apart = source ^ target;
    const u64 unit = (apart & 15) == 0 ? 16 : (apart & 7) == 0 ? 8 : (apart & 3) == 0 ? 4 : 1;
    u64 head = (unit - (source & (unit - 1))) & (unit - 1);
    if (head > len) head = len;
    const u64 units = (len - head) / unit;
    const u64 tail = head + units * unit;
    if (first < head) copy_units<u8>(source, target, head, first, stride);
    if (unit == 16) copy_units<uint4>(source + head, target + head, units, first, stride);
    else if (unit == 8) copy_units<u64>(source + head, target + head, units, first, stride);
    else if (unit == 4) copy_units<u32>(source + head, target + head, units, first, stride);
    else copy_units<u8>(source + head, target + head, units, first, stride);
    if (first < len - tail) copy_units<u8>(source + tail, target + tail, len - tail, first, stride);
}
