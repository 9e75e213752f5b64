// The end of a tile: sums become results, with the bias, in the dtype of the output.

#pragma once

#include "dequantize.cuh"

namespace {

struct Epilogue {
  Out* out;
  const Bias* bias;
  const float* factor;  // of all tokens, where sums are not multiplied by TokenFactors before
  // In shared memory: the warp's 512 bytes in each quarter of a stage of weights that it has read.
  u32 scratch;
  int out_features, num_tokens;
};

// Stores `Tokens` tokens, from first_m on, of a warp's 16 rows of the weight, from n on. A lane's sums are of
// two rows, which lie apart in the output. Outputs of two bytes are therefore transposed in shared memory, 16
// tokens in each of four pieces at a time, and a lane stores eight numbers of a token.
template <int Tokens>
__device__ __forceinline__ void store(const float (&sums)[Tokens / 2], const Epilogue& epilogue, int n,
                                      int first_m) {
  const auto [out, bias, factor, scratch, out_features, num_tokens] = epilogue;
  constexpr bool kTwoBytes = sizeof(Out) == 2;
  constexpr int kPieces = 4;
  const int lane = threadIdx.x % 32;
  const int upper = n + lane / 4;
  float add[2] = {0.f, 0.f};
  if (HAS_BIAS) {
    if (upper < out_features) add[0] = Number<BIAS_DTYPE>::load(bias[upper]);
    if (upper + 8 < out_features) add[1] = Number<BIAS_DTYPE>::load(bias[upper + 8]);
  }
#pragma unroll
  for (int j = 0; j < Tokens / 8; j++) {
    const int m = first_m + j * 8 + lane % 4 * 2;
    float multiplier[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      multiplier[i] = 1.f / kWeightFactor;
      if (MMA_DTYPE == FLOAT16 && !F16_ACCUMULATE) multiplier[i] *= m + i < num_tokens ? factor[m + i] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Out value = Number<OUT_DTYPE>::store(sums[4 * j + i] * multiplier[i % 2] + add[i / 2]);
      const int token = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
      if (kTwoBytes)
        st_shared_u16(scratch + j / 2 % kPieces * (kWStageBytes / 4) + ((j % 2 * 8 + token) * 16 + row) * 2,
                      (u16)value);
      else if (first_m + j * 8 + token < num_tokens && n + row < out_features)
        out[(u64)(first_m + j * 8 + token) * out_features + n + row] = value;
    }
    if (kTwoBytes && (j % (2 * kPieces) == 2 * kPieces - 1 || j == Tokens / 8 - 1)) {
      __syncwarp();
#pragma unroll
      for (int piece = 0; piece <= j / 2 % kPieces; piece++) {
        u32 words[4];
        ld_shared_v4(words, scratch + piece * (kWStageBytes / 4) + lane * 16);
        const int token = first_m + (j / 2 - j / 2 % kPieces + piece) * 16 + lane / 2,
                  first = n + lane % 2 * 8;
        if (token < num_tokens) {
          u16* to = (u16*)out + (u64)token * out_features + first;
          if (out_features % 8 == 0) {
            if (first < out_features) *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
          } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
              if (first + i < out_features) to[i] = (u16)(words[i / 2] >> (i % 2 * 16));
          }
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace
