// A convolution with its bias, residual and ReLU as one operation of cuDNN: the graph and the engine chosen
// for it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <tuple>

#include "core/dtype.h"
#include "cuda/cudnn.h"

namespace etcuda {

// out = relu?(conv(x, weight) + residual? + bias?), channels last: x [N, H, W, C], weight [O, KH, KW, C /
// groups].
struct ConvolutionKey {
  int device = 0;
  DType dtype = kFloat16;
  bool tf32 = false;
  bool has_bias = false;
  bool has_residual = false;
  bool relu = false;
  std::array<int64_t, 4> x{};       // N, C, H, W
  std::array<int64_t, 4> weight{};  // O, C / groups, KH, KW
  std::array<int64_t, 4> out{};     // N, O, OH, OW
  std::array<int64_t, 2> stride{};
  std::array<int64_t, 2> padding{};
  std::array<int64_t, 2> dilation{};
  int64_t alignment = 16;  // of all addresses, in bytes

  auto key() const {
    return std::make_tuple(device, static_cast<int>(dtype), tf32, has_bias, has_residual, relu, x, weight,
                           out, stride, padding, dilation, alignment);
  }
  bool operator<(const ConvolutionKey& other) const { return key() < other.key(); }
};

struct ConvolutionPointers {
  void* x = nullptr;
  void* weight = nullptr;
  void* bias = nullptr;
  void* residual = nullptr;
  void* out = nullptr;
};

class ConvolutionPlan {
 public:
  // `usable()` is false if cuDNN has no engine for it that is deterministic and as exact as asked for;
  // `reason()` then says what cuDNN said. Takes long: cuDNN may compile a kernel.
  ConvolutionPlan(Cudnn& cudnn, CudnnHandle handle, const ConvolutionKey& key);

  bool usable() const { return plan_ != nullptr; }
  const std::string& reason() const { return reason_; }
  size_t workspace_bytes() const { return workspace_bytes_; }
  // Asynchronous, on the handle's stream. Throws Failure.
  void run(CudnnHandle handle, const ConvolutionPointers& pointers, void* workspace) const;

 private:
  void build(CudnnHandle handle);
  // Whether an engine was found.
  bool choose(CudnnHandle handle, const CudnnObject& graph, int mode);
  bool is_allowed(const CudnnObject& config) const;

  Cudnn& cudnn_;
  const ConvolutionKey key_;
  // What the plan was made of, which lives as long as it.
  std::deque<CudnnObject> parts_;
  std::unique_ptr<CudnnObject> plan_;
  size_t workspace_bytes_ = 0;
  std::string reason_;
};

}  // namespace etcuda
