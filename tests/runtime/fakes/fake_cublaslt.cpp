// A libcublasLt.so.13 for machines without a GPU: the product as cuBLASLt defines it, in plain loops on the
// fake driver's memory. ETCUDA_FAKE_CUBLASLT_NO_BIAS makes it know no algorithm with a bias.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "core/half.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld, batch_offset;
  int32_t batches;
};

struct Desc {
  int compute, scale;
  int32_t transposed[2];
  uint32_t epilogue;
  const void* bias;
  int32_t bias_type;
};

struct Heuristic {
  uint64_t algo[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

double load(const void* data, int type, int64_t index) {
  switch (type) {
    case 0:
      return static_cast<const float*>(data)[index];
    case 1:
      return static_cast<const double*>(data)[index];
    case 2:
      return static_cast<double>(static_cast<float>(static_cast<const etcuda::Float16*>(data)[index]));
    default:
      return static_cast<double>(static_cast<float>(static_cast<const etcuda::BFloat16*>(data)[index]));
  }
}

void store(void* data, int type, int64_t index, double value) {
  switch (type) {
    case 0:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      break;
    case 1:
      static_cast<double*>(data)[index] = value;
      break;
    case 2:
      static_cast<etcuda::Float16*>(data)[index] = etcuda::Float16(static_cast<float>(value));
      break;
    default:
      static_cast<etcuda::BFloat16*>(data)[index] = etcuda::BFloat16(static_cast<float>(value));
      break;
  }
}

uint64_t op_rows(const Layout& layout, bool transposed) {
  return transposed ? layout.cols : layout.rows;
}
uint64_t op_cols(const Layout& layout, bool transposed) {
  return transposed ? layout.rows : layout.cols;
}

bool fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
  for (const Layout* layout : {&a, &b, &d}) {
    if (layout->ld < static_cast<int64_t>(layout->rows) || layout->rows == 0 || layout->cols == 0)
      return false;
    if (layout->batches != d.batches || layout->type != d.type) return false;
  }
  const bool ta = desc.transposed[0] != 0, tb = desc.transposed[1] != 0;
  return op_rows(a, ta) == d.rows && op_cols(b, tb) == d.cols && op_cols(a, ta) == op_rows(b, tb);
}

// Some need none, the others more with their rows.
size_t workspace_of(const Layout& d) {
  return d.rows % 2 == 0 ? 0 : static_cast<size_t>(d.rows) << 18;
}

size_t plans = 0;

}  // namespace

EXPORT size_t fake_cublaslt_plans() {
  return plans;
}

EXPORT int cublasLtCreate(void** handle) {
  return *handle = &plans, 0;
}
EXPORT int cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
  *desc = new Desc{compute, scale, {0, 0}, 1, nullptr, -1};
  return 0;
}
EXPORT int cublasLtMatmulDescDestroy(Desc* desc) {
  return delete desc, 0;
}
EXPORT int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, size_t size) {
  void* target = nullptr;
  size_t expected = 4;
  switch (attribute) {
    case 3:
      target = &desc->transposed[0];
      break;
    case 4:
      target = &desc->transposed[1];
      break;
    case 7:
      target = &desc->epilogue;
      break;
    case 8:
      target = &desc->bias, expected = 8;
      break;
    case 26:
      target = &desc->bias_type;
      break;
    default:
      return 7;
  }
  if (size != expected) return 7;
  std::memcpy(target, value, size);
  return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = new Layout{type, rows, cols, ld, 0, 1};
  return 0;
}
EXPORT int cublasLtMatrixLayoutDestroy(Layout* layout) {
  return delete layout, 0;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t size) {
  if (attribute == 5 && size == 4) return std::memcpy(&layout->batches, value, size), 0;
  if (attribute == 6 && size == 8) return std::memcpy(&layout->batch_offset, value, size), 0;
  return 7;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  return *preference = std::malloc(1), 0;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  return std::free(preference), 0;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void*, int attribute, const void*, size_t size) {
  return size == (attribute == 1 ? 8u : 4u) ? 0 : 7;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                          void*, int, Heuristic* found, int* count) {
  *count = 0;
  ++plans;
  if (!fits(*desc, *a, *b, *d) || c->ld != d->ld) return 15;
  if (desc->epilogue == 4 && std::getenv("ETCUDA_FAKE_CUBLASLT_NO_BIAS") != nullptr) return 15;
  std::memset(found, 0, sizeof(*found));
  found->workspace = workspace_of(*d);
  *count = 1;
  return 0;
}
EXPORT int cublasLtMatmul(void*, Desc* desc, const void* alpha, const void* a, Layout* la, const void* b,
                          Layout* lb, const void* beta, const void* c, Layout* lc, void* d, Layout* ld,
                          const void*, void* workspace, size_t workspace_bytes, void*) {
  if (!fits(*desc, *la, *lb, *ld) || workspace_bytes < workspace_of(*ld)) return 7;
  if (workspace_bytes != 0) {
    static_cast<char*>(workspace)[0] = 0x5a;
    static_cast<char*>(workspace)[workspace_bytes - 1] = 0x5a;
  }
  const bool wide = desc->scale == 1;
  const double scale = wide ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha);
  const double keep = wide ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
  const bool ta = desc->transposed[0] != 0, tb = desc->transposed[1] != 0;
  const auto depth = static_cast<int64_t>(op_cols(*la, ta));
  for (int64_t batch = 0; batch < ld->batches; ++batch) {
    for (int64_t j = 0; j < static_cast<int64_t>(ld->cols); ++j) {
      for (int64_t i = 0; i < static_cast<int64_t>(ld->rows); ++i) {
        double sum = 0;
        for (int64_t p = 0; p < depth; ++p) {
          sum += load(a, la->type, batch * la->batch_offset + (ta ? p + i * la->ld : i + p * la->ld)) *
                 load(b, lb->type, batch * lb->batch_offset + (tb ? j + p * lb->ld : p + j * lb->ld));
        }
        const int64_t at = batch * ld->batch_offset + i + j * ld->ld;
        double value = scale * sum;
        if (keep != 0) value += keep * load(c, lc->type, batch * lc->batch_offset + i + j * lc->ld);
        if (desc->epilogue == 4) value += load(desc->bias, desc->bias_type, i);
        store(d, ld->type, at, value);
      }
    }
  }
  return 0;
}
