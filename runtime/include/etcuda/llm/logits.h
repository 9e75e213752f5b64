// Logits of a program: where they arrive, and as float32.
#pragma once

#include <executorch/runtime/core/exec_aten/exec_aten.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" int etcuda_pin_memory(void* data, uint64_t nbytes);
extern "C" int etcuda_unpin_memory(void* data);

namespace etcuda {

// Memory of a loaded module in which logits arrive. Pinned, a CUDA graph writes them there itself. To be
// destroyed before the module.
class PinnedLogits {
 public:
  PinnedLogits() = default;
  ~PinnedLogits() {
    for (const auto& [data, is_pinned] : known_) {
      if (is_pinned) etcuda_unpin_memory(data);
    }
  }
  PinnedLogits(const PinnedLogits&) = delete;
  PinnedLogits& operator=(const PinnedLogits&) = delete;

  // Where that fails, the log says why, and logits are copied.
  void pin(void* data, size_t nbytes) {
    if (known_.count(data) == 0) known_[data] = etcuda_pin_memory(data, nbytes) == 0;
  }

 private:
  std::map<void*, bool> known_;
};

// A bfloat16 is the upper half of a float32. In vectors of the compiler's, for at -O2 not all of them make
// any of a loop: 128,256 logits took 66 us so, and take 17.
inline void widen_bfloat16(const char* data, std::vector<float>& row) {
  constexpr size_t kBlock = 16;
  typedef uint16_t Halves __attribute__((vector_size(kBlock * sizeof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(kBlock * sizeof(uint32_t))));
  const size_t whole = row.size() / kBlock * kBlock;
  for (size_t start = 0; start < whole; start += kBlock) {
    Halves halves;
    std::memcpy(&halves, data + start * sizeof(uint16_t), sizeof(halves));
    const Words bits = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(row.data() + start, &bits, sizeof(bits));
  }
  for (size_t i = whole; i < row.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, data + i * sizeof(half), sizeof(half));
    const uint32_t bits = uint32_t{half} << 16;
    std::memcpy(&row[i], &bits, sizeof(bits));
  }
}

// The last `vocab_size` of the logits. Throws std::runtime_error if they are no rows of so many.
inline void last_row(const executorch::aten::Tensor& logits, size_t vocab_size, std::vector<float>& row) {
  using executorch::aten::ScalarType;
  const auto count = static_cast<size_t>(logits.numel());
  if (count < vocab_size || count % vocab_size != 0)
    throw std::runtime_error("logits: expected rows of " + std::to_string(vocab_size) + ", got " +
                             std::to_string(count) + " numbers.");
  row.resize(vocab_size);
  const char* data =
      static_cast<const char*>(logits.const_data_ptr()) + (count - vocab_size) * logits.element_size();
  if (logits.scalar_type() == ScalarType::Float) {
    std::memcpy(row.data(), data, vocab_size * sizeof(float));
  } else if (logits.scalar_type() == ScalarType::BFloat16) {
    widen_bfloat16(data, row);
  } else if (logits.scalar_type() == ScalarType::Half) {
    const auto* values = reinterpret_cast<const executorch::aten::Half*>(data);
    for (size_t i = 0; i < vocab_size; ++i) row[i] = static_cast<float>(values[i]);
  } else {
    throw std::runtime_error("logits: expected float32, bfloat16 or float16, got another dtype.");
  }
}

}  // namespace etcuda
