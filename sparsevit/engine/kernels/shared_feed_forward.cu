// Both linear layers of a feed-forward network, the norm before them, the GELU between and the residual, for few rows.
//
// SHARES programs share the hidden channels of a block of 64 rows, so that few rows fill the GPU, and hidden values
// never leave a multiprocessor. Each adds up what its hidden channels give to all C channels, hands on what belongs to
// the others by way of L2, and finishes its own C / SHARES channels.
//
// A warp asks for weights, which pass through a ring of slots in the order in which they are needed. Two warpgroups
// multiply, each one half of the columns; GELU of one chunk of hidden channels is done while the tensor cores work on
// the next products. Three more warps prepare what goes with rows and columns. Loops are not unrolled where they need
// not be: a program goes through its code once, and waits for it as it waits for weights.
//
// Compiled with C, HIDDEN, SHARES, THREADS, SHARED (bytes of shared memory), MOST (blocks of rows there may be), and
// what hopper.cuh wants.

#include "feed_forward.cuh"

constexpr int ROWS = 64;                 // of a block
constexpr int OWN = C / SHARES;          // channels that a program finishes
constexpr int MINE = HIDDEN / SHARES;    // hidden channels that it takes
constexpr int CHUNK = 256;               // of them at a time
constexpr int SLOT = 4 * PANEL;          // of the ring
constexpr int SLOTS = 4;
constexpr int PANELS = CHUNK / 64;       // of a chunk; slots that the second layer takes for others' channels
constexpr int FIRST_OTHERS = 2 * STEPS;  // the first layer of a chunk takes a slot a step; the first slots of the second layer: for others' channels,
constexpr int FIRST_OWN = FIRST_OTHERS + 2 * PANELS;  // and for its own, two panels of a chunk each
constexpr int ALL = FIRST_OWN + PANELS;
static_assert(SHARES == 3 && OWN == 128 && MINE == 2 * CHUNK, "what the halves of columns are made for");

// Shared memory.
constexpr int X_AT = 0;                             // rows; then the second chunk, but where the program's own rows are
constexpr int HIDDEN_AT = X_AT + STEPS * PANEL;     // the first chunk
constexpr int RING_AT = HIDDEN_AT + PANELS * PANEL;
constexpr int COLUMNS_AT = RING_AT + SLOTS * SLOT;  // half of the bias and half of the column sum, by hidden channel
constexpr int BIAS_AT = COLUMNS_AT + MINE * 8;      // of its own channels
constexpr int NORMS_AT = BIAS_AT + OWN * 4;         // of rows
constexpr int TO_AT = NORMS_AT + ROWS * 8;          // which row of the token buffer each is
constexpr int EPOCH_AT = TO_AT + ROWS * 4;
constexpr int BARRIERS_AT = EPOCH_AT + 8;
static_assert(BARRIERS_AT + 8 * (2 * SLOTS + 2) + 1024 <= SHARED, "with what aligning the start may take");

// Who is who, and where they wait for each other.
constexpr int MULTIPLYING = 256;         // the first threads
constexpr int PREPARING = THREADS - MULTIPLYING - 32;
constexpr int AMONG_MULTIPLYING = 1, PREPARED = 2;
static_assert(PREPARING == 96, "three warps, of which two have a row to a thread");

// The PARTth 32 of a warpgroup's 128 hidden channels: norm, bias and GELU, then to shared memory.
// upper, lower: norms of the two rows that a thread holds; columns: what COLUMNS_AT has for its first two channels;
// panel: the one that they are half of.
template <int PART>
__device__ __forceinline__ void activate(const float (&hidden)[64], Norm upper, Norm lower, u32 columns, u32 panel,
                                         const Place& place) {
  float4 of[4];
#pragma unroll
  for (int i = 0; i < 4; i++) of[i] = load4(columns + (PART * 4 + i) * 64);
  u32 packed[8];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* v = &hidden[(PART * 4 + i) * 4];
    packed[2 * i] = activated(v, upper, of[i]);
    packed[2 * i + 1] = activated(v + 2, lower, of[i]);
  }
#pragma unroll
  for (int i = 0; i < 8; i += 4)
    store_matrices(panel + place.line + ((PART % 2 * 64 + i * 8) ^ place.turn), packed[i], packed[i + 1], packed[i + 2], packed[i + 3]);
}

// ---- the program ---------------------------------------------------------------------------------------------------

extern "C" __global__ __launch_bounds__(THREADS, 1) void shared_feed_forward(
    const __grid_constant__ Map x_map, const __grid_constant__ Map first_map, const __grid_constant__ Map second_map,
    const float* first_bias, const float* first_sums, const float* second_bias, const float2* x_sums, const int* table,
    u16* out, float2* sums, uint4* inboxes, u32* epochs, int rows, int per_image, int stride, float eps) {
  extern __shared__ char memory[];
  const u32 base = ((u32)__cvta_generic_to_shared(memory) + 1023) & ~1023u;  // swizzles count from multiples of it
  const u32 full = base + BARRIERS_AT, empty = full + 8 * SLOTS, x_full = empty + 8 * SLOTS;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int block = blockIdx.x / SHARES, own = blockIdx.x % SHARES;
  constexpr int LETTER = ROWS * OWN / 8;  // what one program hands on to another, in units of 16 bytes
  const auto inbox = [&](u32 epoch, int whose) {
    return inboxes + ((long)(epoch % 2 * MOST + block) * SHARES + whose) * (SHARES - 1) * LETTER;
  };

  if (thread == MULTIPLYING) {
    for (int i = 0; i < SLOTS; i++) init(full + 8 * i, 1), init(empty + 8 * i, MULTIPLYING / 32);
    for (int i = 0; i < 2; i++) init(x_full + 8 * i, 1);
    show_barriers();
  }
  __syncthreads();
  if (thread >= MULTIPLYING) give_registers<40>();

  if (warp == MULTIPLYING / 32) {  // asks for weights and rows
    if (lane > 0) return;
    const auto ask = [&](int number) {
      const u32 barrier = full + 8 * (number % SLOTS), to = base + RING_AT + number % SLOTS * SLOT;
      const Map* map = number < FIRST_OTHERS ? &first_map : &second_map;
      int line = number % STEPS * 64, panel = (own * MINE + number / STEPS * CHUNK) / 64;  // of the first layer
      int next_line = line, next_panel = panel + 2;
      if (number >= FIRST_OWN) {
        next_panel = panel = own * 2;
        line = own * MINE + (number - FIRST_OWN) * 128, next_line = line + 64;
      } else if (number >= FIRST_OTHERS) {
        next_line = line = own * MINE + (number - FIRST_OTHERS) * 64;
        panel = (own + 1) % SHARES * 2, next_panel = (own + 2) % SHARES * 2;
      }
      expect(barrier, SLOT);
      load(to, map, line, panel, barrier);
      load(to + SLOT / 2, map, next_line, next_panel, barrier);
    };
    prefetch(&first_map), prefetch(&x_map), prefetch(&second_map);
    ask(0), ask(1);  // weights may be asked for while the kernel before ends; more of them would delay the rows
    after_kernel_before();
    for (int i = 0; i < 2; i++) {
      expect(x_full + 8 * i, STEPS / 2 * PANEL);
      load(base + X_AT + i * (STEPS / 2 * PANEL), &x_map, block * ROWS, i * (STEPS / 2), x_full + 8 * i);
    }
#pragma unroll 1
    for (int number = 2; number < SLOTS; number++) ask(number);
    let_next_start();
#pragma unroll 1
    for (int number = SLOTS; number < ALL; number++) {
      wait(empty + 8 * (number % SLOTS), number / SLOTS - 1 & 1);
      ask(number);
    }
    return;
  }

  if (thread >= MULTIPLYING) {  // prepares what goes with columns and rows
    const int helper = thread - MULTIPLYING - 32;
    float4 bias[2], of[2], of_own;  // all asked for before any is needed
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = min(helper + PREPARING * i, MINE / 4 - 1) * 4;
      bias[i] = *(const float4*)(first_bias + own * MINE + column);
      of[i] = *(const float4*)(first_sums + own * MINE + column);
    }
    if (helper < OWN / 4) of_own = *(const float4*)(second_bias + own * OWN + helper * 4);
    const int row = block * ROWS + helper;
    int to = -1;
    if (helper < ROWS && row < rows) {
      const int image = row / per_image;
      to = __ldcg(table + (long)image * stride + (row - image * per_image));
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 at = base + COLUMNS_AT + min(helper + PREPARING * i, MINE / 4 - 1) * 32;
      store4(at, 0.5f * bias[i].x, 0.5f * of[i].x, 0.5f * bias[i].y, 0.5f * of[i].y);
      store4(at + 16, 0.5f * bias[i].z, 0.5f * of[i].z, 0.5f * bias[i].w, 0.5f * of[i].w);
    }
    if (helper < OWN / 4) store4(base + BIAS_AT + helper * 16, of_own.x, of_own.y, of_own.z, of_own.w);
    if (helper < ROWS) store1(base + TO_AT + helper * 4, to);
    after_kernel_before();
    const u32 epoch = __ldcg(epochs + block * SHARES + own);
    if (helper < ROWS) {
      float2 of_row[STEPS];
      const float2* from = x_sums + (long)min(row, rows - 1) * STEPS;
#pragma unroll
      for (int i = 0; i < STEPS; i++) of_row[i] = __ldcg(from + i);
      const Norm norm = norm_of(of_row, eps);
      store2(base + NORMS_AT + helper * 8, norm.scale, norm.offset);
    }
    if (helper == 0) store1(base + EPOCH_AT, epoch);
    there(PREPARED, MULTIPLYING + PREPARING);
    // Empty the inbox of the launch before, but not while the first products wait for weights.
    wait(full + 8 * ((STEPS - 1) % SLOTS), (STEPS - 1) / SLOTS & 1);
    uint4* const before = inbox(epoch + 1, own);
#pragma unroll 4
    for (int i = helper; i < (SHARES - 1) * LETTER; i += PREPARING)
      before[i] = make_uint4(NOTHING, NOTHING, NOTHING, NOTHING);
    return;
  }

  // Multiplies. A warpgroup has a half of the columns; a thread two rows, and two columns of every eight.
  take_registers<232>();
  const int group = __shfl_sync(~0u, warp / 4, 0), member = thread % 128;
  const Place place(member);
  const auto slot = [&](int number) { return base + RING_AT + number % SLOTS * SLOT; };
  const auto ready = [&](int number) { wait(full + 8 * (number % SLOTS), number / SLOTS & 1); };
  const auto done = [&](int number) {
    if (lane == 0) arrive(empty + 8 * (number % SLOTS));
  };
  const auto hidden_panel = [&](int chunk, int panel) {
    return chunk == 0 ? base + HIDDEN_AT + panel * PANEL : base + X_AT + (own * 2 + 2 + panel) % STEPS * PANEL;
  };
  // Of a slot of weights, 64 terms by 256 columns, and the panel of rows or hidden channels at `a`.
  const auto multiply = [&](float(&into)[64], int number, u32 a, int adds) {
    ready(number);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; k++)
      product(into, a_block(a + k * 32), b_block(slot(number) + group * 2 * PANEL + k * 2048), adds + k);
    end_products();
  };
  // Of one of 128 terms by 128 columns, and the hidden channels from `panel` on.
  const auto multiply_own = [&](float(&into)[32], int number, int chunk, int panel, int adds) {
    ready(number);
    begin_products();
#pragma unroll
    for (int k = 0; k < 8; k++)
      product(into, a_block(hidden_panel(chunk, panel + k / 4) + k % 4 * 32),
              b_block(slot(number) + k / 4 * (SLOT / 2) + group * PANEL + k % 4 * 2048), adds + k);
    end_products();
  };

  // The first layer of the first chunk.
  float hidden[64], others[64], mine[32];
#pragma unroll 1
  for (int step = 0; step < STEPS; step++) {
    if (step % (STEPS / 2) == 0) wait(x_full + 8 * (step / (STEPS / 2)), 0);
    multiply(hidden, step, base + X_AT + step * PANEL, step);
    if (step > 0) {
      wait_for_products<1>();
      done(step - 1);
    }
  }
  together(PREPARED, MULTIPLYING + PREPARING);
  const float2 of_upper = load2(base + NORMS_AT + place.upper_row * 8);
  const float2 of_lower = load2(base + NORMS_AT + (place.upper_row + 8) * 8);
  const Norm upper = {of_upper.x, of_upper.y}, lower = {of_lower.x, of_lower.y};
  wait_for_products<0>();
  settle(hidden);
  done(STEPS - 1);

  // GELU of each chunk beside the products that come next: of the first chunk beside the first layer of the second, and
  // of the second beside the second layer of the first, others' channels.
#pragma unroll 1
  for (int chunk = 0; chunk < 2; chunk++) {
    const u32 a = chunk == 0 ? base + X_AT : base + HIDDEN_AT;
    const int number = chunk == 0 ? STEPS : FIRST_OTHERS, steps = chunk == 0 ? STEPS : PANELS;
    const u32 columns = base + COLUMNS_AT + (chunk * CHUNK + group * 128 + place.column) * 8;
    const u32 to = hidden_panel(chunk, group * 2), beside = hidden_panel(chunk, group * 2 + 1);
    multiply(others, number, a, 0);
    activate<0>(hidden, upper, lower, columns, to, place);
    multiply(others, number + 1, a + PANEL, 1);
    wait_for_products<1>();
    done(number);
    activate<1>(hidden, upper, lower, columns, to, place);
    multiply(others, number + 2, a + 2 * PANEL, 1);
    wait_for_products<1>();
    done(number + 1);
    activate<2>(hidden, upper, lower, columns, beside, place);
    multiply(others, number + 3, a + 3 * PANEL, 1);
    wait_for_products<1>();
    done(number + 2);
    activate<3>(hidden, upper, lower, columns, beside, place);
#pragma unroll 1
    for (int step = 4; step < steps; step++) {
      multiply(others, number + step, a + step * PANEL, 1);
      wait_for_products<1>();
      done(number + step - 1);
    }
    show_tensor_cores();
    wait_for_products<0>();
    settle(others);
    done(number + steps - 1);
    if (chunk == 0) {
#pragma unroll
      for (int i = 0; i < 64; i++) hidden[i] = others[i];
    }
    together(AMONG_MULTIPLYING, MULTIPLYING);
  }
#pragma unroll 1
  for (int panel = 0; panel < PANELS; panel++) {
    multiply(others, FIRST_OTHERS + PANELS + panel, hidden_panel(1, panel), 1);
    if (panel > 0) {
      wait_for_products<1>();
      done(FIRST_OTHERS + PANELS + panel - 1);
    }
  }
  multiply_own(mine, FIRST_OWN, 0, 0, 0);
  wait_for_products<1>();
  settle(others);
  done(FIRST_OWN - 1);

  // What belongs to another program, each warpgroup to one of them, in the order in which threads hold it; its own
  // channels meanwhile, which leaves time until what is handed on arrives.
  const u32 epoch = load1(base + EPOCH_AT);
  uint4* const letter = inbox(epoch, (own + 1 + group) % SHARES) + (1 - group) * LETTER + member;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float* v = &others[8 * i];
    hand_on(letter + i * 128, pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
    if (i == 3) multiply_own(mine, FIRST_OWN + 1, 0, 2, 1);
  }
#pragma unroll 1
  for (int i = 0; i < 2; i++) multiply_own(mine, FIRST_OWN + 2 + i, 1, 2 * i, 1);

  // Bias and residual; its own rows are still there.
  const u32 x_own = base + X_AT + (own * 2 + group) * PANEL;
  float added[32];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float2 bias = load2(base + BIAS_AT + (group * 64 + i * 8 + place.column) * 4);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const u32 both = two_of(x_own, place.upper_row + 8 * k, i, place.column);
      added[4 * i + 2 * k] = bias.x + low(both);
      added[4 * i + 2 * k + 1] = bias.y + high(both);
    }
  }
  wait_for_products<1>();
  const uint4* const from = inbox(epoch, own) + group * (LETTER / 2) + member;
  uint4 found[8];
  const auto look = [&] {
#pragma unroll
    for (int i = 0; i < 8; i++) found[i] = handed_on(from + i / 4 * LETTER + i % 4 * 128);
  };
  const auto missing = [&] {
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; i++)
      any |= found[i].x == NOTHING | found[i].y == NOTHING | found[i].z == NOTHING | found[i].w == NOTHING;
    return __any_sync(~0u, any);
  };
  look();
  wait_for_products<0>();
  settle(mine);
#pragma unroll 1
  while (missing()) look();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 a[4] = {found[i].x, found[i].y, found[i].z, found[i].w};
    const u32 b[4] = {found[4 + i].x, found[4 + i].y, found[4 + i].z, found[4 + i].w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      mine[8 * i + 2 * k] += added[8 * i + 2 * k] + (low(a[k]) + low(b[k]));
      mine[8 * i + 2 * k + 1] += added[8 * i + 2 * k + 1] + (high(a[k]) + high(b[k]));
    }
  }

  // Sums of rows, of the 64 channels that a warpgroup has of them; then the rows, put together in shared memory.
  const auto to = [&](int row) { return (int)load1(base + TO_AT + row * 4); };
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const float2 both = row_sums(mine, k);
    const int there = to(place.upper_row + 8 * k);
    if (lane % 4 == 0 && there >= 0) sums[(long)there * STEPS + own * 2 + group] = both;
  }
  put_panel(x_own, mine, place);
  __syncwarp();
  write_panel(x_own, out + own * OWN + group * 64, place, to);
  if (thread == 0) epochs[block * SHARES + own] = epoch + 1;
}
