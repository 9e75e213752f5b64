// The part of cuDNN's C ABI that this runtime calls, as in cudnn_graph.h of cuDNN 9.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/driver_abi.h"

namespace etcuda {

using CudnnStatus = int;
using CudnnHandle = struct cudnnContext*;
using CudnnDescriptor = void*;

constexpr CudnnStatus kCudnnSuccess = 0;
// Statuses are a category, in thousands, and what is special.
constexpr CudnnStatus kCudnnNotSupported = 3000;
constexpr CudnnStatus kCudnnStatusCategory = 1000;
constexpr CudnnStatus kCudnnHostAllocationFailed = 4003;
constexpr CudnnStatus kCudnnDeviceAllocationFailed = 4004;

constexpr int kCudnnPointwise = 0;
constexpr int kCudnnConvolution = 1;
constexpr int kCudnnEngine = 2;
constexpr int kCudnnEngineConfig = 3;
constexpr int kCudnnHeuristics = 4;
constexpr int kCudnnExecutionPlan = 5;
constexpr int kCudnnConvolutionForward = 10;
constexpr int kCudnnPointwiseOperation = 13;
constexpr int kCudnnOperationGraph = 15;
constexpr int kCudnnVariantPack = 16;
constexpr int kCudnnTensor = 17;

constexpr int kCudnnTypeHandle = 0;
constexpr int kCudnnTypeDataType = 1;
constexpr int kCudnnTypeBoolean = 2;
constexpr int kCudnnTypeInt64 = 3;
constexpr int kCudnnTypeFloat = 4;
constexpr int kCudnnTypePointer = 6;
constexpr int kCudnnTypeConvolutionMode = 7;
constexpr int kCudnnTypeHeuristicMode = 8;
constexpr int kCudnnTypeNumericalNote = 11;
constexpr int kCudnnTypePointwiseMode = 14;
constexpr int kCudnnTypeDescriptor = 15;

constexpr int kCudnnPointwiseMode = 0;
constexpr int kCudnnPointwisePrecision = 1;
constexpr int kCudnnConvolutionComputeType = 100;
constexpr int kCudnnConvolutionMode = 101;
constexpr int kCudnnConvolutionDilations = 102;
constexpr int kCudnnConvolutionStrides = 103;
constexpr int kCudnnConvolutionPostPaddings = 104;
constexpr int kCudnnConvolutionPrePaddings = 105;
constexpr int kCudnnConvolutionSpatialDims = 106;
constexpr int kCudnnHeuristicsMode = 200;
constexpr int kCudnnHeuristicsGraph = 201;
constexpr int kCudnnHeuristicsResults = 202;
constexpr int kCudnnEngineConfigEngine = 300;
constexpr int kCudnnPlanHandle = 400;
constexpr int kCudnnPlanEngineConfig = 401;
constexpr int kCudnnPlanWorkspaceSize = 402;
constexpr int kCudnnForwardAlpha = 700;
constexpr int kCudnnForwardBeta = 701;
constexpr int kCudnnForwardConvolution = 702;
constexpr int kCudnnForwardW = 703;
constexpr int kCudnnForwardX = 704;
constexpr int kCudnnForwardY = 705;
constexpr int kCudnnPointwiseDescriptor = 750;
constexpr int kCudnnPointwiseX = 751;
constexpr int kCudnnPointwiseB = 752;
constexpr int kCudnnPointwiseY = 753;
constexpr int kCudnnGraphHandle = 800;
constexpr int kCudnnGraphOperations = 801;
constexpr int kCudnnTensorAlignment = 900;
constexpr int kCudnnTensorDataType = 901;
constexpr int kCudnnTensorDimensions = 902;
constexpr int kCudnnTensorStrides = 903;
constexpr int kCudnnTensorUniqueId = 906;
constexpr int kCudnnTensorIsVirtual = 907;
constexpr int kCudnnPackUniqueIds = 1000;
constexpr int kCudnnPackPointers = 1001;
constexpr int kCudnnPackWorkspace = 1003;
constexpr int kCudnnEngineNumericalNotes = 1303;

constexpr int kCudnnNoteTensorCore = 0;
constexpr int kCudnnNoteDownConvertInputs = 1;
constexpr int kCudnnNoteReducedPrecisionReduction = 2;
constexpr int kCudnnNoteFft = 3;
constexpr int kCudnnNoteNondeterministic = 4;
constexpr int kCudnnNoteWinograd13x13 = 8;

constexpr int kCudnnHeuristicFallback = 2;
constexpr int kCudnnHeuristicA = 3;

constexpr int kCudnnAdd = 0;
constexpr int kCudnnRelu = 100;
constexpr int kCudnnCrossCorrelation = 1;

constexpr int kCudnnFloat = 0;
constexpr int kCudnnHalf = 2;
constexpr int kCudnnBFloat16 = 9;

#define ETCUDA_CUDNN_FUNCTIONS(X)                                                                 \
  X(size_t, cudnnGetVersion, ())                                                                  \
  X(const char*, cudnnGetErrorString, (CudnnStatus))                                              \
  X(void, cudnnGetLastErrorString, (char*, size_t))                                               \
  X(CudnnStatus, cudnnCreate, (CudnnHandle*))                                                     \
  X(CudnnStatus, cudnnSetStream, (CudnnHandle, CUstream))                                         \
  X(CudnnStatus, cudnnBackendCreateDescriptor, (int, CudnnDescriptor*))                           \
  X(CudnnStatus, cudnnBackendDestroyDescriptor, (CudnnDescriptor))                                \
  X(CudnnStatus, cudnnBackendSetAttribute, (CudnnDescriptor, int, int, int64_t, const void*))     \
  X(CudnnStatus, cudnnBackendGetAttribute, (CudnnDescriptor, int, int, int64_t, int64_t*, void*)) \
  X(CudnnStatus, cudnnBackendFinalize, (CudnnDescriptor))                                         \
  X(CudnnStatus, cudnnBackendExecute, (CudnnHandle, CudnnDescriptor, CudnnDescriptor))

}  // namespace etcuda
