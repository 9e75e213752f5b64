#include "cuda/convolution_plan.h"

#include <utility>
#include <vector>

#include "core/failure.h"

namespace etcuda {
namespace {

// More than this is no good bargain, whatever it saves.
constexpr int64_t kMostWorkspace = int64_t{256} << 20;
constexpr int64_t kMostConfigs = 16;
constexpr int64_t kMostNotes = 32;

enum Id : int64_t { kX = 1, kWeight, kBias, kResidual, kOut, kVirtual };

int cudnn_type(DType dtype) {
  switch (dtype) {
    case kFloat32:
      return kCudnnFloat;
    case kFloat16:
      return kCudnnHalf;
    case kBFloat16:
      return kCudnnBFloat16;
    default:
      break;
  }
  fail(ErrorCode::NotSupported, "cuDNN: expected a convolution of float32, float16 or bfloat16, got %s.",
       dtype_name(dtype));
}

// Sizes as N, C, H, W; C is innermost in memory.
CudnnObject tensor(Cudnn& cudnn, int64_t id, const std::array<int64_t, 4>& sizes, int type,
                   int64_t alignment) {
  const int64_t strides[4] = {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  CudnnObject made(cudnn, kCudnnTensor);
  made.set(kCudnnTensorDataType, kCudnnTypeDataType, type);
  made.set_list(kCudnnTensorDimensions, kCudnnTypeInt64, 4, sizes.data());
  made.set_list(kCudnnTensorStrides, kCudnnTypeInt64, 4, strides);
  made.set(kCudnnTensorUniqueId, kCudnnTypeInt64, id);
  made.set(kCudnnTensorAlignment, kCudnnTypeInt64, alignment);
  if (id >= kVirtual) made.set(kCudnnTensorIsVirtual, kCudnnTypeBoolean, true);
  made.finish();
  return made;
}

CudnnObject convolution(Cudnn& cudnn, const ConvolutionKey& key) {
  CudnnObject made(cudnn, kCudnnConvolution);
  made.set(kCudnnConvolutionSpatialDims, kCudnnTypeInt64, int64_t{2});
  made.set(kCudnnConvolutionComputeType, kCudnnTypeDataType, kCudnnFloat);
  made.set(kCudnnConvolutionMode, kCudnnTypeConvolutionMode, kCudnnCrossCorrelation);
  made.set_list(kCudnnConvolutionPrePaddings, kCudnnTypeInt64, 2, key.padding.data());
  made.set_list(kCudnnConvolutionPostPaddings, kCudnnTypeInt64, 2, key.padding.data());
  made.set_list(kCudnnConvolutionStrides, kCudnnTypeInt64, 2, key.stride.data());
  made.set_list(kCudnnConvolutionDilations, kCudnnTypeInt64, 2, key.dilation.data());
  made.finish();
  return made;
}

CudnnObject pointwise(Cudnn& cudnn, int mode) {
  CudnnObject made(cudnn, kCudnnPointwise);
  made.set(kCudnnPointwiseMode, kCudnnTypePointwiseMode, mode);
  made.set(kCudnnPointwisePrecision, kCudnnTypeDataType, kCudnnFloat);
  made.finish();
  return made;
}

}  // namespace

ConvolutionPlan::ConvolutionPlan(Cudnn& cudnn, CudnnHandle handle, const ConvolutionKey& key)
    : cudnn_(cudnn), key_(key) {
  try {
    build(handle);
  } catch (const Failure& failure) {
    plan_ = nullptr;
    reason_ = failure.what();
  }
  if (plan_ == nullptr) parts_.clear();
}

// In the order that cuDNN's own fused kernels have: convolution, residual, bias, ReLU; between them fp32.
void ConvolutionPlan::build(CudnnHandle handle) {
  const int type = cudnn_type(key_.dtype);
  std::deque<CudnnObject>& kept = parts_;
  std::vector<CudnnDescriptor> operations;
  int left = 1 + (key_.has_residual ? 1 : 0) + (key_.has_bias ? 1 : 0) + (key_.relu ? 1 : 0);
  int64_t next_virtual = kVirtual;
  const auto result = [&] {
    const bool is_last = --left == 0;
    return is_last ? tensor(cudnn_, kOut, key_.out, type, key_.alignment)
                   : tensor(cudnn_, next_virtual++, key_.out, kCudnnFloat, 16);
  };
  kept.push_back(tensor(cudnn_, kX, key_.x, type, key_.alignment));
  const CudnnObject& x = kept.back();
  kept.push_back(tensor(cudnn_, kWeight, key_.weight, type, key_.alignment));
  const CudnnObject& weight = kept.back();
  kept.push_back(convolution(cudnn_, key_));
  const CudnnObject& described = kept.back();
  kept.push_back(result());
  CudnnDescriptor value = kept.back().get();
  kept.emplace_back(cudnn_, kCudnnConvolutionForward);
  kept.back().set_object(kCudnnForwardX, x);
  kept.back().set_object(kCudnnForwardW, weight);
  kept.back().set_object(kCudnnForwardConvolution, described);
  kept.back().set(kCudnnForwardY, kCudnnTypeDescriptor, value);
  kept.back().set(kCudnnForwardAlpha, kCudnnTypeFloat, 1.0F);
  kept.back().set(kCudnnForwardBeta, kCudnnTypeFloat, 0.0F);
  kept.back().finish();
  operations.push_back(kept.back().get());
  const auto append = [&](int mode, const CudnnObject* other) {
    kept.push_back(pointwise(cudnn_, mode));
    const CudnnObject& how = kept.back();
    kept.push_back(result());
    const CudnnObject& sum = kept.back();
    kept.emplace_back(cudnn_, kCudnnPointwiseOperation);
    kept.back().set_object(kCudnnPointwiseDescriptor, how);
    kept.back().set(kCudnnPointwiseX, kCudnnTypeDescriptor, value);
    if (other != nullptr) kept.back().set_object(kCudnnPointwiseB, *other);
    kept.back().set_object(kCudnnPointwiseY, sum);
    kept.back().finish();
    operations.push_back(kept.back().get());
    value = sum.get();
  };
  if (key_.has_residual) {
    kept.push_back(tensor(cudnn_, kResidual, key_.out, type, key_.alignment));
    append(kCudnnAdd, &kept.back());
  }
  if (key_.has_bias) {
    kept.push_back(tensor(cudnn_, kBias, {1, key_.out[1], 1, 1}, type, key_.alignment));
    append(kCudnnAdd, &kept.back());
  }
  if (key_.relu) append(kCudnnRelu, nullptr);

  kept.emplace_back(cudnn_, kCudnnOperationGraph);
  const CudnnObject& graph = kept.back();
  graph.set_list(kCudnnGraphOperations, kCudnnTypeDescriptor, static_cast<int64_t>(operations.size()),
                 operations.data());
  graph.set(kCudnnGraphHandle, kCudnnTypeHandle, handle);
  graph.finish();
  if (choose(handle, graph, kCudnnHeuristicA) || choose(handle, graph, kCudnnHeuristicFallback)) return;
  if (reason_.empty()) reason_ = "cuDNN has no engine for it that is deterministic and exact enough.";
}

bool ConvolutionPlan::choose(CudnnHandle handle, const CudnnObject& graph, int mode) {
  const CudnnObject heuristics(cudnn_, kCudnnHeuristics);
  heuristics.set_object(kCudnnHeuristicsGraph, graph);
  heuristics.set(kCudnnHeuristicsMode, kCudnnTypeHeuristicMode, mode);
  if (const CudnnStatus status = heuristics.finalize(); status != kCudnnSuccess) {
    reason_ = cudnn_.describe(status);
    return false;
  }
  std::vector<CudnnObject> configs;
  std::vector<CudnnDescriptor> found;
  for (int64_t i = 0; i < kMostConfigs; ++i) {
    configs.emplace_back(cudnn_, kCudnnEngineConfig);
    found.push_back(configs.back().get());
  }
  const int64_t count =
      heuristics.get_list(kCudnnHeuristicsResults, kCudnnTypeDescriptor, kMostConfigs, found.data());
  for (int64_t i = 0; i < count; ++i) {
    const CudnnObject& config = configs[static_cast<size_t>(i)];
    if (!is_allowed(config)) continue;
    auto plan = std::make_unique<CudnnObject>(cudnn_, kCudnnExecutionPlan);
    plan->set(kCudnnPlanHandle, kCudnnTypeHandle, handle);
    plan->set_object(kCudnnPlanEngineConfig, config);
    // An engine may refuse what the heuristics thought it could do: the next one is asked.
    if (const CudnnStatus status = plan->finalize(); status != kCudnnSuccess) {
      reason_ = cudnn_.describe(status);
      continue;
    }
    int64_t workspace = 0;
    plan->get_list(kCudnnPlanWorkspaceSize, kCudnnTypeInt64, 1, &workspace);
    if (workspace < 0 || workspace > kMostWorkspace) continue;
    workspace_bytes_ = static_cast<size_t>(workspace);
    parts_.push_back(std::move(configs[static_cast<size_t>(i)]));
    plan_ = std::move(plan);
    reason_.clear();
    return true;
  }
  return false;
}

bool ConvolutionPlan::is_allowed(const CudnnObject& config) const {
  const CudnnObject engine(cudnn_, kCudnnEngine);
  CudnnDescriptor descriptor = engine.get();
  config.get_list(kCudnnEngineConfigEngine, kCudnnTypeDescriptor, 1, &descriptor);
  int notes[kMostNotes] = {};
  const int64_t count =
      engine.get_list(kCudnnEngineNumericalNotes, kCudnnTypeNumericalNote, kMostNotes, notes);
  for (int64_t i = 0; i < count; ++i) {
    switch (notes[i]) {
      case kCudnnNoteTensorCore:
        // For fp32 that means TF32.
        if (key_.dtype == kFloat32 && !key_.tf32) return false;
        break;
      case kCudnnNoteDownConvertInputs:
        if (!key_.tf32) return false;
        break;
      case kCudnnNoteReducedPrecisionReduction:
      case kCudnnNoteFft:
      case kCudnnNoteNondeterministic:
      case kCudnnNoteWinograd13x13:
        return false;
      default:
        break;
    }
  }
  return true;
}

void ConvolutionPlan::run(CudnnHandle handle, const ConvolutionPointers& pointers, void* workspace) const {
  int64_t ids[5] = {kX, kWeight, kOut};
  void* data[5] = {pointers.x, pointers.weight, pointers.out};
  int64_t count = 3;
  const auto add = [&](Id id, void* address) {
    ids[count] = id;
    data[count++] = address;
  };
  if (key_.has_bias) add(kBias, pointers.bias);
  if (key_.has_residual) add(kResidual, pointers.residual);
  const CudnnObject pack(cudnn_, kCudnnVariantPack);
  pack.set_list(kCudnnPackUniqueIds, kCudnnTypeInt64, count, ids);
  pack.set_list(kCudnnPackPointers, kCudnnTypePointer, count, data);
  pack.set(kCudnnPackWorkspace, kCudnnTypePointer, workspace);
  pack.finish();
  cudnn_.check(cudnn_.cudnnBackendExecute(handle, plan_->get(), pack.get()), "cudnnBackendExecute");
}

}  // namespace etcuda
