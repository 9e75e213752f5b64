// Attention of few query rows over a KV cache as one kernel: the CTAs of a cluster share the keys of a KV
// head, and bring together what they have through their shared memory. The host defines NAME, DTYPE (of q, k,
// v and out), LENGTH_DTYPE (bytes of an integer of kv_len, 0 for none), POSITION_DTYPE (likewise of
// positions), POSITION_STRIDE (between batch rows), SINKS (0 for none, else 1 + a dtype as ptx.cuh counts
// them), CLUSTER, THREADS, UNROLL, KV_HEADS, GROUP, L_Q, HEAD_DIM, CAUSAL, WINDOW, RING, and SCALE and
// SOFTCAP, the bits of a float32, and AHEAD, the steps whose keys are brought to the L2 before they are read.

#include "cluster.cuh"

namespace {

typedef Number<DTYPE> Value;
constexpr int kRows = GROUP * L_Q;
constexpr int kLanes = HEAD_DIM / 8 < 32 ? HEAD_DIM / 8 : 32;  // that have a key, each 8 columns at a time
constexpr int kPieces = HEAD_DIM / 8 / kLanes;
constexpr int kGroups = THREADS / kLanes;  // of such lanes
constexpr int kStep = kGroups * UNROLL;    // keys
constexpr int kLogits = kRows * UNROLL;    // of the keys of a group of lanes, a power of two
constexpr int kOwn = kLogits > kLanes ? kLogits / kLanes : 1;  // of them that a lane has
constexpr int kOutputs = kRows * HEAD_DIM;
constexpr int kSlice = kOutputs / CLUSTER;           // that a CTA divides and stores
constexpr int kWidth = kGroups < 32 ? kGroups : 32;  // lanes that bring a row's groups together
static_assert(THREADS / kWidth >= kRows, "each row has lanes");
static_assert(kSlice * CLUSTER == kOutputs && (kLogits & (kLogits - 1)) == 0, "the host checks it");

// Shared memory, in words.
constexpr int kWeights = 0;                            // [kGroups][kLogits]
constexpr int kSums = kWeights + kGroups * kLogits;    // [kGroups][kOutputs]
constexpr int kStats = kSums + kGroups * kOutputs;     // [2][kRows][kGroups]
constexpr int kTotals = kStats + 2 * kRows * kGroups;  // [2][kRows]
constexpr int kReceived = kTotals + 2 * kRows;         // [CLUSTER][kSlice]
constexpr int kReceivedStats = kReceived + kOutputs;   // [CLUSTER][2][kRows]
static_assert(4 * (kReceivedStats + 2 * CLUSTER * kRows) <= SHARED_BYTES, "the host asks for enough");

// The maximum of no logit.
__device__ __forceinline__ float none() {
  return __int_as_float(0xff800000);
}
__device__ __forceinline__ float from_lane(float value, int other) {
  return __uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(value), other));
}
// What is subtracted from logits: 0 for a row that has seen no key.
__device__ __forceinline__ float finite(float maximum) {
  return maximum == none() ? 0.f : maximum;
}
__device__ __forceinline__ void unpack(const uint4& piece, float (&values)[8]) {
  const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    values[2 * i] = Value::load((u16)(words[i] & 0xffff));
    values[2 * i + 1] = Value::load((u16)(words[i] >> 16));
  }
}
__device__ __forceinline__ long long load_integer(const void* from, int bytes, int index) {
  return bytes == 8 ? ((const long long*)from)[index] : ((const int*)from)[index];
}
// As masking.py reads them: a position beyond the keys means the same as the last key's.
__device__ __forceinline__ int position_of(const void* positions, int batch, int m, int length) {
  if (CAUSAL == 3) {
    const long long found = load_integer(positions, POSITION_DTYPE, batch * POSITION_STRIDE + m);
    return found < -1 ? -1 : found > 2147483646 ? 2147483646 : (int)found;
  }
  return CAUSAL == 2 ? m + length - L_Q : m;
}
// The keys of a CTA of a cluster, and how many there are in all.
struct Keys {
  int length, begin, end;
};
__device__ __forceinline__ Keys keys_of(const void* kv_len, const void* positions, int batch, int l_kv,
                                        int rank) {
  int length = RING ? 2147479552 : l_kv;
  if (LENGTH_DTYPE) {
    const long long found = load_integer(kv_len, LENGTH_DTYPE, batch);
    length = found < 0 ? 0 : found > l_kv ? l_kv : (int)found;
  }
  int lo = 0, hi = length;
  if (CAUSAL) {
    int first = 2147483646, last = -1;
#pragma unroll
    for (int m = 0; m < L_Q; m++) {
      const int position = position_of(positions, batch, m, length);
      first = min(first, position);
      last = max(last, position);
    }
    hi = max(min(length, last + 1), 0);
    if (WINDOW > 0) lo = min(max(first - WINDOW + 1, 0), hi);
  }
  const int span = (hi - lo + CLUSTER - 1) / CLUSTER;
  const int begin = min(lo + rank * span, hi);
  return {length, begin, min(begin + span, hi)};
}
// Brings keys and values of [from, to) of a KV head to the L2.
__device__ __forceinline__ void bring(const u16* k, const u16* v, u64 base, int from, int to) {
  const u64 last = base + (u64)to * HEAD_DIM;
  for (u64 at = base + (u64)from * HEAD_DIM + threadIdx.x * 64; at < last; at += THREADS * 64) {
    prefetch_l2(k + at);
    prefetch_l2(v + at);
  }
}
__device__ __forceinline__ float logit(float product) {
  constexpr float kLog2E = 1.4426950408889634f;
  const float softcap = __int_as_float(SOFTCAP), scale = __int_as_float(SCALE);
  if (SOFTCAP == 0) return product * scale;
  const float t = product * (scale * (2.f / softcap));
  return softcap * kLog2E * (1.f - 2.f / (1.f + exp2f(t)));
}
// Sums each of `values` over the lanes of a key; lane i is left with number i * kOwn and those behind it, or,
// where there are fewer numbers than lanes, with number i * kLogits / kLanes.
__device__ __forceinline__ void sum_over_lanes(float (&values)[kLogits], int lane) {
  int count = kLogits;
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = lane & other;
#pragma unroll
      for (int i = 0; i < kLogits / 2; i++) {
        if (i >= count) break;
        const float mine = upper ? values[i + count] : values[i];
        const float theirs = upper ? values[i] : values[i + count];
        values[i] = mine + from_lane(theirs, other);
      }
    } else {
      values[0] += from_lane(values[0], other);
    }
  }
}

}  // namespace

// Grid: CLUSTER x KV heads x batch.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS)
    NAME(const u16* q,                // [batch, KV_HEADS * GROUP, L_Q, HEAD_DIM]
         const u16* k, const u16* v,  // [batch, KV_HEADS, L_kv, HEAD_DIM]
         const void* kv_len,          // [batch]
         const void* positions,       // [L_Q] or [batch, L_Q]
         const void* sinks,           // [KV_HEADS * GROUP]
         u16* out,                    // [batch, L_Q, KV_HEADS * GROUP, HEAD_DIM]
         int l_kv_plus_2, void*, void*) {
  extern __shared__ __align__(16) u8 shared[];
  float* const words = (float*)shared;
  const int thread = threadIdx.x, lane = thread % kLanes, group = thread / kLanes;
  const int rank = blockIdx.x, head = blockIdx.y, batch = blockIdx.z, l_kv = l_kv_plus_2 - 2;
  // The product behind this kernel may load its weights from now on.
  launch_dependents();
  cluster_arrive();
  const u64 base = (u64)(batch * KV_HEADS + head) * l_kv * HEAD_DIM;
  if (AHEAD && PDL && !RING) {
    // Keys of former steps are on their way to the L2 while the kernel in front still runs. What it, or one
    // before it, has not stored yet may be read here: lengths that are too old are as good as any, for
    // nothing is computed of them, and what is fetched is of the cache.
    const Keys guessed = keys_of(kv_len, positions, batch, l_kv, rank);
    bring(k, v, base, guessed.begin, min(guessed.end, guessed.begin + AHEAD * kStep));
  }
  // Pointers are not marked __restrict__: behind this wait everything is loaded anew.
  wait_for_previous_grid();

  const u16* const q_rows = q + (u64)(batch * KV_HEADS + head) * GROUP * L_Q * HEAD_DIM;  // row (head, m)
  uint4 loaded[kRows][kPieces];
#pragma unroll
  for (int row = 0; row < kRows; row++)
#pragma unroll
    for (int piece = 0; piece < kPieces; piece++)
      loaded[row][piece] = *(const uint4*)(q_rows + ((row % GROUP) * L_Q + row / GROUP) * HEAD_DIM +
                                           (piece * kLanes + lane) * 8);
  const Keys range = keys_of(kv_len, positions, batch, l_kv, rank);
  const int length = range.length, begin = range.begin, end = range.end;
  // The first logit that this lane has after the sum; its others are of the next keys, or of the next rows.
  const int own = kOwn > 1 ? lane * kOwn : lane * kLogits / kLanes;
  int position[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; i++)
    position[i] = position_of(positions, batch, (own + i) / UNROLL / GROUP, length);

  float maximum[kOwn], total[kOwn], sums[kRows][kPieces][8];
#pragma unroll
  for (int i = 0; i < kOwn; i++) maximum[i] = none(), total[i] = 0.f;
#pragma unroll
  for (int row = 0; row < kRows; row++)
#pragma unroll
    for (int i = 0; i < kPieces * 8; i++) sums[row][i / 8][i % 8] = 0.f;

  for (int start = begin; start < end; start += kStep) {
    if (AHEAD && !RING && start + AHEAD * kStep < end)
      bring(k, v, base, start + AHEAD * kStep, min(end, start + (AHEAD + 1) * kStep));
    uint4 keys[UNROLL][kPieces], values[UNROLL][kPieces];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int n = start + u * kGroups + group;
      const u64 at = base + (u64)(RING ? n % l_kv : n) * HEAD_DIM + lane * 8;
#pragma unroll
      for (int piece = 0; piece < kPieces; piece++) {
        keys[u][piece] = values[u][piece] = make_uint4(0, 0, 0, 0);
        if (n < end) {
          keys[u][piece] = *(const uint4*)(k + at + piece * kLanes * 8);
          values[u][piece] = *(const uint4*)(v + at + piece * kLanes * 8);
        }
      }
    }
    float products[kLogits];  // [kRows][UNROLL]
#pragma unroll
    for (int i = 0; i < kLogits; i++) products[i] = 0.f;
#pragma unroll
    for (int piece = 0; piece < kPieces; piece++) {
      float rows[kRows][8];
#pragma unroll
      for (int row = 0; row < kRows; row++) unpack(loaded[row][piece], rows[row]);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float key[8];
        unpack(keys[u][piece], key);
#pragma unroll
        for (int row = 0; row < kRows; row++)
#pragma unroll
          for (int i = 0; i < 8; i++) products[row * UNROLL + u] += rows[row][i] * key[i];
      }
    }
    sum_over_lanes(products, lane);
    // The lanes that have logits of a row bring its maximum and its weights up to date.
    float weights[kOwn], shrink[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int n = start + (own + i) % UNROLL * kGroups + group;
      const bool keep = n < end && (!CAUSAL || (n <= position[i] && (!WINDOW || n > position[i] - WINDOW)));
      weights[i] = keep ? logit(products[i]) : none();
    }
    // Logits of one row are in kOwn neighbours of a lane, or UNROLL / kOwn neighbouring lanes.
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int row = (own + i) / UNROLL;
      float most = maximum[i];
#pragma unroll
      for (int j = 0; j < kOwn; j++)
        if ((own + j) / UNROLL == row) most = fmaxf(most, weights[j]);
      if (kOwn < UNROLL) {
#pragma unroll
        for (int other = 1; other < UNROLL / kOwn; other *= 2) {
          const int stride = kLogits < kLanes ? other * (kLanes / kLogits) : other;
          most = fmaxf(most, from_lane(most, stride));
        }
      }
      shrink[i] = exp2_approx(maximum[i] - finite(most));
      maximum[i] = most;
    }
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      weights[i] = exp2_approx(weights[i] - finite(maximum[i]));
      total[i] = total[i] * shrink[i] + weights[i];
      // The second product takes weights as they are in the dtype of v.
      words[kWeights + group * kLogits + own + i] = Value::load(Value::store(weights[i]));
    }
    if (start != begin) {
      // All of a row shrinks alike: the lane that has its first logit says by how much.
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        const int from = row * UNROLL;
        const int other = kOwn > 1 ? from / kOwn : from * kLanes / kLogits;
        const float by = __int_as_float(__shfl_sync(0xffffffffu, __float_as_int(shrink[from % kOwn]),
                                                    thread % 32 / kLanes * kLanes + other));
#pragma unroll
        for (int i = 0; i < kPieces * 8; i++) sums[row][i / 8][i % 8] *= by;
      }
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
      for (int piece = 0; piece < kPieces; piece++) {
        float value[8];
        unpack(values[u][piece], value);
#pragma unroll
        for (int row = 0; row < kRows; row++) {
          const float weight = words[kWeights + group * kLogits + row * UNROLL + u];
#pragma unroll
          for (int i = 0; i < 8; i++) sums[row][piece][i] += weight * value[i];
        }
      }
    }
    __syncwarp();
  }

  // What a group of lanes has: sums of weighted values, and for each row the maximum and the sum of weights.
#pragma unroll
  for (int row = 0; row < kRows; row++)
#pragma unroll
    for (int piece = 0; piece < kPieces; piece++)
#pragma unroll
      for (int i = 0; i < 8; i += 4)
        *(float4*)(words + kSums + group * kOutputs + row * HEAD_DIM + (piece * kLanes + lane) * 8 + i) =
            make_float4(sums[row][piece][i], sums[row][piece][i + 1], sums[row][piece][i + 2],
                        sums[row][piece][i + 3]);
#pragma unroll
  for (int i = 0; i < kOwn; i++) {
    const int row = (own + i) / UNROLL;
    float sum = total[i];
#pragma unroll
    for (int j = 0; j < kOwn; j++)
      if (j != i && (own + j) / UNROLL == row) sum += total[j];
    if (kOwn < UNROLL) {
#pragma unroll
      for (int other = 1; other < UNROLL / kOwn; other *= 2)
        sum += from_lane(sum, kLogits < kLanes ? other * (kLanes / kLogits) : other);
    }
    if ((own + i) % UNROLL == 0) {
      words[kStats + row * kGroups + group] = maximum[i];
      words[kStats + (kRows + row) * kGroups + group] = sum;
    }
  }
  __syncthreads();

  // Of the CTA: the factors of its groups, which take the place of their maxima, and the sums of weights.
  {
    const bool exists = thread / kWidth < kRows;
    const int row = exists ? thread / kWidth : 0;
    float* const stats = words + kStats + row * kGroups + thread % kWidth;
    float most = none(), sum = 0.f, factors[kGroups / kWidth];
#pragma unroll
    for (int i = 0; i < kGroups; i += kWidth) most = fmaxf(most, stats[i]);
#pragma unroll
    for (int other = 1; other < kWidth; other *= 2) most = fmaxf(most, from_lane(most, other));
#pragma unroll
    for (int i = 0; i < kGroups; i += kWidth) {
      factors[i / kWidth] = exp2_approx(stats[i] - finite(most));
      sum += factors[i / kWidth] * stats[kRows * kGroups + i];
    }
#pragma unroll
    for (int other = 1; other < kWidth; other *= 2) sum += from_lane(sum, other);
    if (exists) {
#pragma unroll
      for (int i = 0; i < kGroups; i += kWidth) stats[i] = factors[i / kWidth];
      words[kTotals + row] = most;
      words[kTotals + kRows + row] = sum;
    }
  }
  __syncthreads();
  cluster_wait();  // All CTAs of the cluster have started, so that they can be written to.
  for (int output = thread; output < kOutputs; output += THREADS) {
    const float* const factors = words + kStats + output / HEAD_DIM * kGroups;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kGroups; i++) sum += factors[i] * words[kSums + i * kOutputs + output];
    store_to_cta(words + kReceived + rank * kSlice + output % kSlice, output / kSlice, sum);
  }
  for (int i = thread; i < 2 * kRows * CLUSTER; i += THREADS)
    store_to_cta(words + kReceivedStats + rank * 2 * kRows + i % (2 * kRows), i / (2 * kRows),
                 words[kTotals + i % (2 * kRows)]);
  cluster_arrive();
  cluster_wait();

  for (int i = thread; i < kSlice; i += THREADS) {
    const int output = rank * kSlice + i, row = output / HEAD_DIM;
    const float* const stats = words + kReceivedStats + row;
    float most = none(), sum = 0.f, weight = 0.f;
#pragma unroll
    for (int each = 0; each < CLUSTER; each++) most = fmaxf(most, stats[each * 2 * kRows]);
    const int query_head = head * GROUP + row % GROUP;
    float sink = none();
    if (SINKS) {
      constexpr int kDtype = SINKS ? SINKS - 1 : 0;
      sink = Number<kDtype>::load(((const Number<kDtype>::Bits*)sinks)[query_head]) * 1.4426950408889634f;
      most = fmaxf(most, sink);
    }
#pragma unroll
    for (int each = 0; each < CLUSTER; each++) {
      const float factor = exp2_approx(stats[each * 2 * kRows] - finite(most));
      sum += factor * words[kReceived + each * kSlice + i];
      weight += factor * stats[each * 2 * kRows + kRows];
    }
    if (SINKS) weight += exp2_approx(sink - finite(most));
    out[((u64)(batch * L_Q + row / GROUP) * KV_HEADS * GROUP + query_head) * HEAD_DIM + output % HEAD_DIM] =
        Value::store(sum / (weight == 0.f ? 1.f : weight));
  }
}
