// A matrix product as cuBLASLt sees it (column major), with its descriptors and algorithm.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "core/dtype.h"
#include "cuda/cublaslt.h"

namespace etcuda {

// One operand: op(stored), where the stored matrix is column major with this leading dimension.
struct PlanOperand {
  bool transposed = false;
  int64_t ld = 1;
  int64_t batch_stride = 0;
  uint32_t alignment = 256;  // of its address and batches, in bytes

  auto key() const { return std::tie(transposed, ld, batch_stride, alignment); }
};

// d[rows, cols] = alpha * a[rows, depth] @ b[depth, cols] (+ beta * d) (+ bias along the rows)
struct PlanKey {
  int device = 0;
  DType dtype = kFloat32;
  bool tf32 = false;
  bool bias = false;
  bool adds = false;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;
  int64_t batch = 1;
  PlanOperand a;
  PlanOperand b;
  PlanOperand d;

  auto key() const {
    return std::make_tuple(device, static_cast<int>(dtype), tf32, bias, adds, rows, cols, depth, batch,
                           a.key(), b.key(), d.key());
  }
  bool operator<(const PlanKey& other) const { return key() < other.key(); }
};

class MatmulPlan {
 public:
  // Throws Failure; `usable()` is false if cuBLASLt knows no algorithm.
  MatmulPlan(const PlanKey& key, size_t most_workspace_bytes);
  ~MatmulPlan();
  MatmulPlan(const MatmulPlan&) = delete;
  MatmulPlan& operator=(const MatmulPlan&) = delete;

  bool usable() const { return usable_; }
  // That its algorithm needs, and run() is to be given.
  size_t workspace_bytes() const { return workspace_bytes_; }
  void run(const void* a, const void* b, void* d, const void* bias, double alpha, double beta,
           void* workspace, CUstream stream) const;

 private:
  CublasLayout layout(int64_t rows, int64_t cols, const PlanOperand& operand) const;
  void find_algorithm(size_t most_workspace_bytes);
  void release() noexcept;

  const PlanKey key_;
  CublasMatmulDesc desc_ = nullptr;
  CublasLayout a_ = nullptr;
  CublasLayout b_ = nullptr;
  CublasLayout d_ = nullptr;
  CublasAlgo algo_{};
  size_t workspace_bytes_ = 0;
  bool usable_ = false;
};

}  // namespace etcuda
