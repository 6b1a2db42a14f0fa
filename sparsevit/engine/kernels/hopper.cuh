// What kernels for compute capability 9.0 say to the machine: barriers in shared memory, tensor maps, products of
// warpgroups, matrices between registers and shared memory. The PTX ISA says what each instruction wants; its chapter
// on asynchronous warpgroup level matrix instructions, who holds which value of a product and how swizzled lines lie.
//
// With TYPE, "bf16" or "f16", and BRAIN, whether it is the first.

#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

struct alignas(64) Map {
  char bytes[128];
};

constexpr int PANEL = 8192;  // bytes of 64 lines of 64 values, as maps write them: of 128 bytes each, swizzled

// Barriers in shared memory: of so many arrivals, and of bytes that maps bring.
__device__ __forceinline__ void init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

// What was initialised is seen by all that may use it.
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra THERE;\nbra AGAIN;\nTHERE:\n}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// A block of a map: from this line of this panel on.
__device__ __forceinline__ void load(u32 to, const Map* map, int line, int panel, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
      ::"r"(to), "l"(map), "r"(0), "r"(line), "r"(panel), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void prefetch(const Map* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void after_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ void together(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Not to wait for the others, who wait for this thread.
__device__ __forceinline__ void there(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers of each thread of a warpgroup, from those that others gave.
template <int N>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// What this thread wrote to shared memory is seen by the tensor cores.
__device__ __forceinline__ void show_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until no more than N groups of products are under way.
template <int N>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// After a wait: sums are read no earlier, which the compiler does not know.
template <int N>
__device__ __forceinline__ void settle(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

// Descriptors of blocks. a: 64 rows, of which sums go along lines; b: columns, which go along lines.
constexpr u64 SWIZZLED = 1ull << 62, EIGHT_LINES = 64ull << 32;
__device__ __forceinline__ u64 block(u32 at) { return SWIZZLED | EIGHT_LINES | (u64)((at & 0x3ffff) >> 4); }
__device__ __forceinline__ u64 a_block(u32 at) { return block(at) | 1ull << 16; }
__device__ __forceinline__ u64 b_block(u32 at) { return block(at) | (u64)(PANEL / 16) << 16; }

#define FLOATS4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLOATS16(d, i) FLOATS4(d, i), FLOATS4(d, i + 4), FLOATS4(d, i + 8), FLOATS4(d, i + 12)
#define NAMES8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define NAMES16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
  NAMES8(a, b, c, d, e, f, g, h) "," NAMES8(i, j, k, l, m, n, o, p)
#define NAMES32                                                                  \
  NAMES16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)                  \
  "," NAMES16(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)
#define NAMES64                                                                  \
  NAMES32 "," NAMES16(32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47) \
  "," NAMES16(48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63)
#define NAMES96                                                                  \
  NAMES64 "," NAMES16(64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79) \
  "," NAMES16(80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95)

// 64 rows by 128 or 64 columns, a sum of 16 terms; it is added to what is there if `adds` is not 0.
__device__ __forceinline__ void product(float (&sums)[64], u64 a, u64 b, int adds) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE
               " {" NAMES64 "}, %64, %65, p, 1, 1, 0, 1;\n}"
               : FLOATS16(sums, 0), FLOATS16(sums, 16), FLOATS16(sums, 32), FLOATS16(sums, 48)
               : "l"(a), "l"(b), "r"(adds));
}

__device__ __forceinline__ void product(float (&sums)[32], u64 a, u64 b, int adds) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE
               " {" NAMES32 "}, %32, %33, p, 1, 1, 0, 1;\n}"
               : FLOATS16(sums, 0), FLOATS16(sums, 16)
               : "l"(a), "l"(b), "r"(adds));
}

// 64 rows by 192 columns; 16 terms of the rows come from registers, as a product of 16 columns would leave them there.
__device__ __forceinline__ void product(float (&sums)[96], const u32 (&a)[4], u64 b, int adds) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE
               " {" NAMES96 "}, {%96, %97, %98, %99}, %100, p, 1, 1, 1;\n}"
               : FLOATS16(sums, 0), FLOATS16(sums, 16), FLOATS16(sums, 32), FLOATS16(sums, 48), FLOATS16(sums, 64),
                 FLOATS16(sums, 80)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

// Two values as they are stored, the first in the lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ float unpack(u16 value) {
#if BRAIN
  return __uint_as_float((u32)value << 16);
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
#endif
}

__device__ __forceinline__ float low(u32 both) { return unpack((u16)both); }
__device__ __forceinline__ float high(u32 both) { return unpack((u16)(both >> 16)); }

// Four blocks of 8x8 values, as products hold them, to lines of shared memory; each lane names one line.
__device__ __forceinline__ void store_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

__device__ __forceinline__ void store4(u32 at, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

__device__ __forceinline__ void store2(u32 at, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory");
}

__device__ __forceinline__ void store1(u32 at, u32 value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
}

__device__ __forceinline__ float4 load4(u32 at) {
  float4 all;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(all.x), "=f"(all.y), "=f"(all.z), "=f"(all.w)
               : "r"(at));
  return all;
}

__device__ __forceinline__ float2 load2(u32 at) {
  float2 both;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(both.x), "=f"(both.y) : "r"(at));
  return both;
}

__device__ __forceinline__ u32 load1(u32 at) {
  u32 value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(at));
  return value;
}

// What no word is that one program hands on to another. Only two NaNs could be, for which others would wait for ever.
constexpr u32 NOTHING = ~0u;
__device__ __forceinline__ u32 something(u32 pair) { return min(pair, NOTHING - 1); }

// From one program to another, past caches that they do not share; each word is seen as a whole.
__device__ __forceinline__ void hand_on(uint4* to, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};"
               ::"l"(to), "r"(something(a)), "r"(something(b)), "r"(something(c)), "r"(something(d))
               : "memory");
}

__device__ __forceinline__ uint4 handed_on(const uint4* from) {
  uint4 all;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(all.x), "=r"(all.y), "=r"(all.z), "=r"(all.w)
               : "l"(from)
               : "memory");
  return all;
}
