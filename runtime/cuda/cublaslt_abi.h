// The part of cuBLASLt's C ABI that this runtime calls, as in cublasLt.h of CUDA 12 and 13.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/driver_abi.h"

namespace etcuda {

using CublasStatus = int;
using CublasHandle = struct cublasLtContext*;
using CublasMatmulDesc = struct cublasLtMatmulDescOpaque*;
using CublasLayout = struct cublasLtMatrixLayoutOpaque*;
using CublasPreference = struct cublasLtMatmulPreferenceOpaque*;

struct CublasAlgo {
  uint64_t data[8];
};

struct CublasHeuristic {
  CublasAlgo algo;
  size_t workspace_bytes;
  CublasStatus state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(CublasHeuristic) == 96);

constexpr CublasStatus kCublasSuccess = 0;
constexpr CublasStatus kCublasNotSupported = 15;

constexpr int kCudaR32F = 0;
constexpr int kCudaR64F = 1;
constexpr int kCudaR16F = 2;
constexpr int kCudaR16BF = 14;

constexpr int kCompute32F = 68;
constexpr int kCompute64F = 70;
constexpr int kCompute32FFastTf32 = 77;

constexpr int kOpN = 0;
constexpr int kOpT = 1;

constexpr int kDescTransA = 3;
constexpr int kDescTransB = 4;
constexpr int kDescEpilogue = 7;
constexpr int kDescBiasPointer = 8;
constexpr int kDescBiasDataType = 26;
constexpr uint32_t kEpilogueBias = 4;

constexpr int kLayoutBatchCount = 5;
constexpr int kLayoutBatchOffset = 6;

constexpr int kPreferenceWorkspace = 1;
constexpr int kPreferenceReduction = 3;
constexpr int kPreferenceAlignmentA = 5;
constexpr int kPreferenceAlignmentB = 6;
constexpr int kPreferenceAlignmentC = 7;
constexpr int kPreferenceAlignmentD = 8;

#define ETCUDA_CUBLASLT_FUNCTIONS(X)                                                                      \
  X(cublasLtCreate, (CublasHandle*))                                                                      \
  X(cublasLtMatmulDescCreate, (CublasMatmulDesc*, int, int))                                              \
  X(cublasLtMatmulDescDestroy, (CublasMatmulDesc))                                                        \
  X(cublasLtMatmulDescSetAttribute, (CublasMatmulDesc, int, const void*, size_t))                         \
  X(cublasLtMatrixLayoutCreate, (CublasLayout*, int, uint64_t, uint64_t, int64_t))                        \
  X(cublasLtMatrixLayoutDestroy, (CublasLayout))                                                          \
  X(cublasLtMatrixLayoutSetAttribute, (CublasLayout, int, const void*, size_t))                           \
  X(cublasLtMatmulPreferenceCreate, (CublasPreference*))                                                  \
  X(cublasLtMatmulPreferenceDestroy, (CublasPreference))                                                  \
  X(cublasLtMatmulPreferenceSetAttribute, (CublasPreference, int, const void*, size_t))                   \
  X(cublasLtMatmulAlgoGetHeuristic,                                                                       \
    (CublasHandle, CublasMatmulDesc, CublasLayout, CublasLayout, CublasLayout, CublasLayout,              \
     CublasPreference, int, CublasHeuristic*, int*))                                                      \
  X(cublasLtMatmul, (CublasHandle, CublasMatmulDesc, const void*, const void*, CublasLayout, const void*, \
                     CublasLayout, const void*, const void*, CublasLayout, void*, CublasLayout,           \
                     const CublasAlgo*, void*, size_t, CUstream))

}  // namespace etcuda
