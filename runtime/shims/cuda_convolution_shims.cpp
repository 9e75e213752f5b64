// Convolutions on the GPU, where cuDNN runs them.
#include "cuda/convolution.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

// `numbers`: stride, padding and dilation, two each, groups, and 1 for a ReLU. `done` becomes 0 where the
// program is to launch its own kernel.
AotiError fused_convolution(TensorHandle x, TensorHandle weight, TensorHandle bias, TensorHandle residual,
                            TensorHandle out, const int64_t* numbers, int32_t* done) {
  return guarded([&] {
    ConvolutionNumbers given;
    given.stride = {numbers[0], numbers[1]};
    given.padding = {numbers[2], numbers[3]};
    given.dilation = {numbers[4], numbers[5]};
    given.groups = numbers[6];
    given.relu = numbers[7] != 0;
    *done = cudnn_convolution(*x, *weight, bias, residual, *out, given) ? 1 : 0;
  });
}

}  // namespace

ShimList cuda_convolution_shims() {
  static const Shim shims[] = {shim("aoti_torch_cuda_fused_convolution", fused_convolution)};
  return shim_list(shims);
}

}  // namespace etcuda
