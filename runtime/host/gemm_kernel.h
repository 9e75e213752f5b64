// The blocked matrix product. Compiled twice, with and without AVX2: everything here has internal linkage and
// no function of the standard library is instantiated, so that no AVX2 code leaks into the portable build.
//
// Blocks of B (kKC x kNC) and A (kMC x kKC) are packed into panels as wide as the register tile, converted to
// the accumulation type; products of one (kMB x kNC) block of the output accumulate in a scratch before the
// epilogue.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "host/gemm.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace etcuda {
namespace {

constexpr int64_t kVectorBytes = 32;
constexpr int64_t kMR = 6;
constexpr int64_t kMC = 96;
constexpr int64_t kKC = 256;
constexpr int64_t kNC = 512;
constexpr int64_t kMB = 768;
// Up to this many rows, packing B costs more than it saves.
constexpr int64_t kFewRows = 4;

template <typename Acc>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(Acc));
template <typename Acc>
constexpr int64_t kNR = 2 * kLanes<Acc>;

template <typename Acc>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline float widen(float value) {
  return value;
}
inline double widen(double value) {
  return value;
}
inline float widen(BFloat16 value) {
  return static_cast<float>(value);
}
inline float widen(Float16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  return static_cast<float>(value);
#endif
}

template <typename T, typename Acc>
inline T narrow(Acc value) {
  return static_cast<T>(value);
}

// panel[k][i] = a[i][k]; rows beyond m are zero.
template <typename Acc, typename T>
void pack_rows(Acc* panels, const T* a, int64_t row_stride, int64_t col_stride, int64_t m, int64_t k,
               int64_t width) {
  for (int64_t i0 = 0; i0 < m; i0 += width) {
    const int64_t rows = least(width, m - i0);
    Acc* panel = panels + i0 * k;
    for (int64_t i = 0; i < width; ++i) {
      const T* row = a + (i0 + (i < rows ? i : 0)) * row_stride;
      if (i < rows) {
        for (int64_t p = 0; p < k; ++p) panel[p * width + i] = widen(row[p * col_stride]);
      } else {
        for (int64_t p = 0; p < k; ++p) panel[p * width + i] = 0;
      }
    }
  }
}

// As pack_rows, for columns that lie side by side in memory.
template <typename Acc, typename T>
void pack_adjacent(Acc* panels, const T* b, int64_t row_stride, int64_t k, int64_t n) {
  constexpr int64_t width = kNR<Acc>;
  for (int64_t j0 = 0; j0 < n; j0 += width) {
    const int64_t columns = least(width, n - j0);
    Acc* panel = panels + j0 * k;
    for (int64_t p = 0; p < k; ++p) {
      const T* row = b + p * row_stride + j0;
      Acc* out = panel + p * width;
      if (columns == width) {
        for (int64_t j = 0; j < width; ++j) out[j] = widen(row[j]);
      } else {
        for (int64_t j = 0; j < width; ++j) out[j] = j < columns ? widen(row[j]) : Acc{0};
      }
    }
  }
}

// out[kMR][kNR] += a panel * b panel
template <typename Acc>
void multiply_tile(const Acc* a, const Acc* b, int64_t k, Acc* out, int64_t out_stride, int64_t rows,
                   int64_t columns) {
  using Vector = typename VectorOf<Acc>::Type;
  constexpr int64_t lanes = kLanes<Acc>;
  Vector sum[kMR][2] = {};
  for (int64_t p = 0; p < k; ++p) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + lanes);
#pragma GCC unroll 6
    for (int64_t i = 0; i < kMR; ++i) {
      sum[i][0] += a[i] * b0;
      sum[i][1] += a[i] * b1;
    }
    a += kMR;
    b += kNR<Acc>;
  }
  if (rows == kMR && columns == kNR<Acc>) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < kMR; ++i) {
      Vector* row = reinterpret_cast<Vector*>(out + i * out_stride);
      row[0] += sum[i][0];
      row[1] += sum[i][1];
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out[i * out_stride + j] += sum[i][j / lanes][j % lanes];
  }
}

template <typename Acc, typename T>
void store_typed(const GemmProblem& problem, const Acc* sum, int64_t stride, int64_t m0, int64_t n0,
                 int64_t m, int64_t n) {
  const auto alpha = static_cast<Acc>(problem.alpha);
  const auto beta = static_cast<Acc>(problem.beta);
  const MatrixView& out = problem.out;
  const MatrixView& addend = problem.addend;
  const bool adds = problem.beta != 0;
  for (int64_t i = 0; i < m; ++i) {
    T* row = static_cast<T*>(out.data) + (m0 + i) * out.row_stride + n0 * out.col_stride;
    const Acc* from = sum + i * stride;
    if (!adds) {
      for (int64_t j = 0; j < n; ++j) row[j * out.col_stride] = narrow<T>(alpha * from[j]);
      continue;
    }
    const T* add = static_cast<const T*>(addend.data) + (m0 + i) * addend.row_stride + n0 * addend.col_stride;
    for (int64_t j = 0; j < n; ++j) {
      row[j * out.col_stride] = narrow<T>(alpha * from[j] + beta * widen(add[j * addend.col_stride]));
    }
  }
}

template <typename Acc>
void store(const GemmProblem& problem, const Acc* sum, int64_t stride, int64_t m0, int64_t n0, int64_t m,
           int64_t n) {
  if constexpr (sizeof(Acc) == 8) {
    store_typed<double, double>(problem, sum, stride, m0, n0, m, n);
  } else if (problem.out.dtype == kBFloat16) {
    store_typed<float, BFloat16>(problem, sum, stride, m0, n0, m, n);
  } else if (problem.out.dtype == kFloat16) {
    store_typed<float, Float16>(problem, sum, stride, m0, n0, m, n);
  } else {
    store_typed<float, float>(problem, sum, stride, m0, n0, m, n);
  }
}

// Sum of products of two contiguous rows.
template <typename Acc, typename T>
Acc dot(const Acc* a, const T* b, int64_t k) {
  constexpr int64_t ways = 4 * kLanes<Acc>;
  Acc sums[ways] = {};
  int64_t p = 0;
  for (; p + ways <= k; p += ways) {
    for (int64_t w = 0; w < ways; ++w) sums[w] += a[p + w] * widen(b[p + w]);
  }
  Acc sum = 0;
  for (int64_t w = 0; w < ways; ++w) sum += sums[w];
  for (; p < k; ++p) sum += a[p] * widen(b[p]);
  return sum;
}

// A few rows times a B that is contiguous along k or along n.
template <typename Acc, typename A, typename B>
void multiply_few_rows(const GemmProblem& problem, Acc* workspace) {
  const MatrixView& a = problem.a;
  const MatrixView& b = problem.b;
  Acc* rows = workspace;
  Acc* sums = workspace + problem.m * problem.k;
  for (int64_t i = 0; i < problem.m; ++i) {
    const A* from = static_cast<const A*>(a.data) + i * a.row_stride;
    for (int64_t p = 0; p < problem.k; ++p) rows[i * problem.k + p] = widen(from[p * a.col_stride]);
  }
  const B* weights = static_cast<const B*>(b.data);
  for (int64_t n0 = 0; n0 < problem.n; n0 += kNC) {
    const int64_t n = least(kNC, problem.n - n0);
    if (b.row_stride == 1) {
      for (int64_t j = 0; j < n; ++j) {
        const B* column = weights + (n0 + j) * b.col_stride;
        for (int64_t i = 0; i < problem.m; ++i)
          sums[i * kNC + j] = dot(rows + i * problem.k, column, problem.k);
      }
    } else {
      for (int64_t i = 0; i < problem.m * kNC; ++i) sums[i] = 0;
      for (int64_t p = 0; p < problem.k; ++p) {
        const B* row = weights + p * b.row_stride + n0;
        for (int64_t i = 0; i < problem.m; ++i) {
          const Acc scale = rows[i * problem.k + p];
          Acc* sum = sums + i * kNC;
          for (int64_t j = 0; j < n; ++j) sum[j] += scale * widen(row[j]);
        }
      }
    }
    store(problem, sums, kNC, 0, n0, problem.m, n);
  }
}

template <typename Acc, typename A, typename B>
void multiply_blocked(const GemmProblem& problem, Acc* workspace) {
  const MatrixView& a = problem.a;
  const MatrixView& b = problem.b;
  Acc* const packed_a = workspace;
  Acc* const packed_b = packed_a + kMC * kKC;
  Acc* const sums = packed_b + kKC * kNC;
  for (int64_t m0 = 0; m0 < problem.m; m0 += kMB) {
    const int64_t m = least(kMB, problem.m - m0);
    for (int64_t n0 = 0; n0 < problem.n; n0 += kNC) {
      const int64_t n = least(kNC, problem.n - n0);
      for (int64_t i = 0; i < m * kNC; ++i) sums[i] = 0;
      for (int64_t k0 = 0; k0 < problem.k; k0 += kKC) {
        const int64_t k = least(kKC, problem.k - k0);
        const B* from_b = static_cast<const B*>(b.data) + k0 * b.row_stride + n0 * b.col_stride;
        if (b.col_stride == 1) {
          pack_adjacent<Acc>(packed_b, from_b, b.row_stride, k, n);
        } else {
          pack_rows<Acc>(packed_b, from_b, b.col_stride, b.row_stride, n, k, kNR<Acc>);
        }
        for (int64_t i0 = 0; i0 < m; i0 += kMC) {
          const int64_t rows = least(kMC, m - i0);
          const A* from_a = static_cast<const A*>(a.data) + (m0 + i0) * a.row_stride + k0 * a.col_stride;
          pack_rows<Acc>(packed_a, from_a, a.row_stride, a.col_stride, rows, k, kMR);
          for (int64_t j = 0; j < n; j += kNR<Acc>) {
            for (int64_t i = 0; i < rows; i += kMR) {
              multiply_tile(packed_a + i * k, packed_b + j * k, k, sums + (i0 + i) * kNC + j, kNC,
                            least(kMR, rows - i), least(kNR<Acc>, n - j));
            }
          }
        }
      }
      store(problem, sums, kNC, m0, n0, m, n);
    }
  }
}

inline bool takes_few_rows(const GemmProblem& problem) {
  return problem.m <= kFewRows && (problem.b.row_stride == 1 || problem.b.col_stride == 1);
}

template <typename Acc>
inline int64_t workspace_elements(const GemmProblem& problem) {
  if (takes_few_rows(problem)) return problem.m * (problem.k + kNC);
  return kMC * kKC + kKC * kNC + least(kMB, problem.m) * kNC;
}

template <typename Acc, typename A, typename B>
void multiply(const GemmProblem& problem, void* workspace) {
  if (takes_few_rows(problem)) {
    multiply_few_rows<Acc, A, B>(problem, static_cast<Acc*>(workspace));
  } else {
    multiply_blocked<Acc, A, B>(problem, static_cast<Acc*>(workspace));
  }
}

template <typename A>
void multiply_by(const GemmProblem& problem, void* workspace) {
  switch (problem.b.dtype) {
    case kBFloat16:
      return multiply<float, A, BFloat16>(problem, workspace);
    case kFloat16:
      return multiply<float, A, Float16>(problem, workspace);
    default:
      return multiply<float, A, float>(problem, workspace);
  }
}

void gemm_any(const GemmProblem& problem, void* workspace) {
  switch (problem.a.dtype) {
    case kFloat64:
      return multiply<double, double, double>(problem, workspace);
    case kBFloat16:
      return multiply_by<BFloat16>(problem, workspace);
    case kFloat16:
      return multiply_by<Float16>(problem, workspace);
    default:
      return multiply_by<float>(problem, workspace);
  }
}

}  // namespace
}  // namespace etcuda
