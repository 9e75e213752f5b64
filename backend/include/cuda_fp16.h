#pragma once
#include "etcuda_cuda_abi.h"
