// Both linear layers of a feed-forward network, the norm before them, the GELU between and the residual, a program for each
// block of rows.
//
// A warpgroup takes 64 rows through the network, a chunk of hidden channels at a time: what the first layer's product
// leaves in its registers is what the second layer's wants there, so hidden values never leave them. Two warpgroups take
// turns: while one multiplies, the second layer of a chunk and the first of the next, the other has its GELU. A thread
// asks for weights, which pass through a ring of slots that both warpgroups read.
//
// Compiled with C, HIDDEN, ROWS (of a program), THREADS, SHARED (bytes of shared memory), and what hopper.cuh wants.

#include "feed_forward.cuh"

constexpr int CHUNK = 128;               // hidden channels at a time
constexpr int CHUNKS = HIDDEN / CHUNK;
constexpr int SLOT = 2 * STEPS * PANEL;  // of the ring: all terms of a chunk of the first layer, or a chunk's of the second
constexpr int SLOTS = 3;
constexpr int ALL = 2 * CHUNKS;
constexpr int WARPGROUPS = ROWS / 64;
constexpr int MULTIPLYING = 128 * WARPGROUPS;  // the first threads
static_assert(C == 192 && WARPGROUPS == 2 && THREADS == MULTIPLYING + 128, "what registers and turns are for");

// Shared memory.
constexpr int X_AT = 0;                                   // rows, by panel; at the end what becomes of them
constexpr int RING_AT = X_AT + STEPS * WARPGROUPS * PANEL;
constexpr int COLUMNS_AT = RING_AT + SLOTS * SLOT;        // half of the bias and half of the column sum, by hidden channel
constexpr int BIAS_AT = COLUMNS_AT + HIDDEN * 8;
constexpr int BARRIERS_AT = BIAS_AT + C * 4;
static_assert(BARRIERS_AT + 8 * (2 * SLOTS + 1) + 1024 <= SHARED, "with what aligning the start may take");

constexpr int PREPARED = 1, TURN = 2;  // where threads wait for each other; a warpgroup's turn is TURN and its number

extern "C" __global__ __launch_bounds__(THREADS, 1) void chained_feed_forward(
    const __grid_constant__ Map x_map, const __grid_constant__ Map first_map, const __grid_constant__ Map second_map,
    const float* first_bias, const float* first_sums, const float* second_bias, const float2* x_sums, const int* table,
    u16* out, float2* sums, int rows, int per_image, int stride, float eps) {
  extern __shared__ char memory[];
  const u32 base = ((u32)__cvta_generic_to_shared(memory) + 1023) & ~1023u;  // swizzles count from multiples of it
  const u32 full = base + BARRIERS_AT, empty = full + 8 * SLOTS, x_full = empty + 8 * SLOTS;
  const int thread = threadIdx.x, warp = thread / 32, first_row = blockIdx.x * ROWS;
  const auto slot = [&](int number) { return base + RING_AT + number % SLOTS * SLOT; };

  if (thread == MULTIPLYING) {
    for (int i = 0; i < SLOTS; i++) init(full + 8 * i, 1), init(empty + 8 * i, MULTIPLYING / 32);
    init(x_full, 1);
    show_barriers();
  }
  __syncthreads();

  if (thread >= MULTIPLYING) {  // one of them asks for weights and rows
    give_registers<24>();
    if (thread > MULTIPLYING) return;
    const auto ask = [&](int number) {
      const u32 barrier = full + 8 * (number % SLOTS), to = slot(number);
      const int chunk = number / 2;
      expect(barrier, SLOT);
      if (number % 2 == 0) {
        for (int i = 0; i < STEPS; i++) load(to + i * 2 * PANEL, &first_map, i * 64, chunk * 2, barrier);
      } else {
        for (int i = 0; i < 2; i++) load(to + i * STEPS * PANEL, &second_map, chunk * CHUNK + i * 64, 0, barrier);
      }
    };
    prefetch(&first_map), prefetch(&x_map), prefetch(&second_map);
    ask(0);  // weights may be asked for while the kernel before ends; more of them would delay the rows
    after_kernel_before();
    expect(x_full, STEPS * WARPGROUPS * PANEL);
    for (int i = 0; i < STEPS; i++) load(base + X_AT + i * WARPGROUPS * PANEL, &x_map, first_row, i, x_full);
    for (int number = 1; number < SLOTS; number++) ask(number);
    let_next_start();
#pragma unroll 1
    for (int number = SLOTS; number < ALL; number++) {
      wait(empty + 8 * (number % SLOTS), number / SLOTS - 1 & 1);
      ask(number);
    }
    return;
  }

  take_registers<240>();
  const int group = __shfl_sync(~0u, warp / 4, 0), member = thread % 128, lane = thread % 32;
  const Place place(member);
  for (int i = thread; i < HIDDEN / 2; i += MULTIPLYING) {
    const float2 bias = *(const float2*)(first_bias + i * 2), of = *(const float2*)(first_sums + i * 2);
    store4(base + COLUMNS_AT + i * 16, 0.5f * bias.x, 0.5f * of.x, 0.5f * bias.y, 0.5f * of.y);
  }
  if (thread < C / 4) {
    const float4 bias = *(const float4*)(second_bias + thread * 4);
    store4(base + BIAS_AT + thread * 16, bias.x, bias.y, bias.z, bias.w);
  }
  const int own_row = first_row + group * 64 + place.warp_row + lane % 16, image = own_row / per_image;
  const int own_to =  // of 16 rows that a warp writes, each lane knows where one of them goes
      own_row < rows ? __ldcg(table + (long)image * stride + (own_row - image * per_image)) : -1;
  const auto to = [&](int row) { return __shfl_sync(~0u, own_to, row - place.warp_row); };
  together(PREPARED, MULTIPLYING);

  after_kernel_before();
  Norm norms[2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int row = min(first_row + group * 64 + place.upper_row + 8 * k, rows - 1);
    float2 of_row[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) of_row[i] = __ldcg(x_sums + (long)row * STEPS + i);
    norms[k] = norm_of(of_row, eps);
  }
  const auto ready = [&](int number) { wait(full + 8 * (number % SLOTS), number / SLOTS & 1); };
  const auto done = [&](int number) {
    if (lane == 0) arrive(empty + 8 * (number % SLOTS));
  };
  const auto x_panel = [&](int panel) { return base + X_AT + (panel * WARPGROUPS + group) * PANEL; };

  float all[C / 2], hidden[CHUNK / 2];
  u32 chunk_of[CHUNK / 16][4];  // hidden values of a chunk, by 16 terms, as the second layer's products take them
  const auto second_layer = [&](int chunk) {
    ready(2 * chunk + 1);
    begin_products();
#pragma unroll
    for (int k = 0; k < CHUNK / 16; k++)
      product(all, chunk_of[k], b_block(slot(2 * chunk + 1) + k / 4 * STEPS * PANEL + k % 4 * 2048), chunk + k);
    end_products();
  };
  if (group == 1) there(TURN, MULTIPLYING);
  wait(x_full, 0);
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    together(TURN + group, MULTIPLYING);
    if (chunk > 0) second_layer(chunk - 1);
    ready(2 * chunk);
    begin_products();
#pragma unroll
    for (int k = 0; k < C / 16; k++)
      product(hidden, a_block(x_panel(k / 4) + k % 4 * 32), b_block(slot(2 * chunk) + k / 4 * 2 * PANEL + k % 4 * 2048),
              k);
    end_products();
    if (group == 0 || chunk + 1 < CHUNKS) there(TURN + 1 - group, MULTIPLYING);
    if (chunk > 0) {
      wait_for_products<1>();
      done(2 * chunk - 1);
    }
    wait_for_products<0>();
    settle(hidden);
    done(2 * chunk);
    const u32 columns = base + COLUMNS_AT + (chunk * CHUNK + place.column) * 8;
#pragma unroll
    for (int i = 0; i < CHUNK / 8; i++) {
      const float4 of = load4(columns + i * 64);
#pragma unroll
      for (int k = 0; k < 2; k++)
        chunk_of[i / 2][i % 2 * 2 + k] = activated(&hidden[4 * i + 2 * k], norms[k], of);
    }
  }
  second_layer(CHUNKS - 1);
  wait_for_products<0>();
  settle(all);

  // Bias and residual, sums of rows in the first of their slots, and the rows, put together in shared memory.
#pragma unroll
  for (int i = 0; i < C / 8; i++) {
    const float2 bias = load2(base + BIAS_AT + (i * 8 + place.column) * 4);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const u32 both = two_of(x_panel(i / 8), place.upper_row + 8 * k, i % 8, place.column);
      all[4 * i + 2 * k] += bias.x + low(both);
      all[4 * i + 2 * k + 1] += bias.y + high(both);
    }
  }
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const float2 both = row_sums(all, k);
    const int there = to(place.upper_row + 8 * k), of_slot = lane % 4;
    if (of_slot < STEPS && there >= 0)
      sums[(long)there * STEPS + of_slot] = of_slot == 0 ? both : make_float2(0.f, 0.f);
  }
#pragma unroll
  for (int panel = 0; panel < STEPS; panel++) put_panel(x_panel(panel), &all[32 * panel], place);
  __syncwarp();
#pragma unroll
  for (int panel = 0; panel < STEPS; panel++) write_panel(x_panel(panel), out + panel * 64, place, to);
}
