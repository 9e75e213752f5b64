// Choosing the next token on the host, as etcuda.llm.sampling does in Python: same options, same draws.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

namespace etcuda {

// The filters apply in this order.
struct SamplingOptions {
  double repetition_penalty =
      1;                   // divides positive logits of tokens that occurred, multiplies others; 1: none
  double temperature = 0;  // logits are divided by it; 0: the greatest logit's token
  int64_t top_k = 0;       // likeliest tokens that stay; 0: all
  double top_p = 1;        // the fewest likeliest tokens whose probabilities reach it stay; 1: all
  double min_p = 0;        // tokens at least so likely, relative to the likeliest, stay; 0: all
  uint64_t seed = 0;

  // Throws std::invalid_argument if a value is out of its range.
  void check() const {
    require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty",
            "a positive number", repetition_penalty);
    require(temperature >= 0 && std::isfinite(temperature), "temperature", "0 or more", temperature);
    require(top_k >= 0, "top_k", "0 for all, or a number of tokens", static_cast<double>(top_k));
    require(top_p > 0 && top_p <= 1, "top_p", "above 0, at most 1", top_p);
    require(min_p >= 0 && min_p <= 1, "min_p", "0 to 1", min_p);
  }

 private:
  static void require(bool holds, const char* name, const char* expected, double got) {
    if (!holds)
      throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " +
                                  std::to_string(got) + ".");
  }
};

// Philox4x64-10 (Salmon et al., 2011) with the key (seed, 0), in the order of numpy.random.Philox(key=seed).
class Philox {
 public:
  explicit Philox(uint64_t seed) : seed_(seed) {}

  uint64_t next() {
    if (used_ == 4) {
      ++counter_;
      fill();
      used_ = 0;
    }
    return words_[used_++];
  }

 private:
  void fill() {
    uint64_t c[4] = {counter_, 0, 0, 0};
    uint64_t k0 = seed_, k1 = 0;
    for (int round = 0; round < 10; ++round) {
      const unsigned __int128 first = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * c[0];
      const unsigned __int128 second = static_cast<unsigned __int128>(0xCA5A826395121157u) * c[2];
      const uint64_t c1 = c[1], c3 = c[3];
      c[0] = static_cast<uint64_t>(second >> 64) ^ c1 ^ k0;
      c[1] = static_cast<uint64_t>(second);
      c[2] = static_cast<uint64_t>(first >> 64) ^ c3 ^ k1;
      c[3] = static_cast<uint64_t>(first);
      k0 += 0x9E3779B97F4A7C15u;
      k1 += 0xBB67AE8584CAA73Bu;
    }
    std::copy(c, c + 4, words_);
  }

  uint64_t seed_, counter_ = 0, words_[4] = {};
  int used_ = 4;
};

class Sampler {
 public:
  // `seen`: tokens of the prompt, for the repetition penalty. Throws std::invalid_argument on bad options.
  explicit Sampler(const SamplingOptions& options, const std::vector<int64_t>& seen = {})
      : options_(options), random_(options.seed), seen_(seen.begin(), seen.end()) {
    options.check();
  }

  // The next token. Throws std::runtime_error if a logit is NaN.
  int64_t choose(const std::vector<float>& logits) {
    const int64_t likeliest = first_of_greatest(logits);
    if (options_.temperature == 0 && options_.repetition_penalty == 1) return likeliest;
    // As in Python, the arithmetic is that of doubles.
    std::vector<double> values(logits.begin(), logits.end());
    if (options_.repetition_penalty != 1) {
      for (const int64_t token : seen_) {
        if (token < 0 || static_cast<size_t>(token) >= values.size()) continue;
        double& value = values[static_cast<size_t>(token)];
        value = value > 0 ? value / options_.repetition_penalty : value * options_.repetition_penalty;
      }
    }
    const int64_t token = options_.temperature == 0
                              ? std::max_element(values.begin(), values.end()) - values.begin()
                              : draw(values);
    seen_.insert(token);
    return token;
  }

 private:
  // A block of the vocabulary at a time, in vectors of the compiler's: at -O2 not all of them make any of a
  // loop, and 128,256 logits take 120 us and not 30. Then the place in the block.
  static int64_t first_of_greatest(const std::vector<float>& logits) {
    constexpr size_t kLanes = 4, kRows = 32;
    typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
    typedef int32_t Flags __attribute__((vector_size(kLanes * sizeof(int32_t))));
    constexpr float kLeast = -std::numeric_limits<float>::infinity();
    float greatest = kLeast;
    size_t place = 0;
    for (size_t start = 0; start < logits.size(); start += kLanes * kRows) {
      const size_t count = std::min(kLanes * kRows, logits.size() - start);
      float block[kLanes * kRows];
      std::fill(block + count, block + kLanes * kRows, kLeast);
      std::memcpy(block, logits.data() + start, count * sizeof(float));
      Floats most = Floats{} + kLeast;
      Flags is_nan = {};
      for (size_t row = 0; row < kRows; ++row) {
        Floats values;
        std::memcpy(&values, block + row * kLanes, sizeof(values));
        most = most < values ? values : most;
        is_nan |= values != values;
      }
      float here = kLeast;
      int32_t any_nan = 0;
      for (size_t i = 0; i < kLanes; ++i) {
        here = std::max(here, most[i]);
        any_nan |= is_nan[i];
      }
      if (any_nan != 0)
        throw std::runtime_error(
            "logits: expected numbers, got NaN. The weights are damaged, or fp16 overflowed.");
      if (here <= greatest) continue;
      greatest = here;
      place = start;
    }
    while (place < logits.size() && logits[place] < greatest) ++place;
    return static_cast<int64_t>(place);
  }

  // The sum of the weights of the likeliest passes a random part of all of it at the token that is drawn.
  // Only as many are put in order as that takes: all of 128,256 take 20 ms.
  int64_t draw(std::vector<double>& values) {
    const double uniform = static_cast<double>(random_.next() >> 11) * 0x1p-53;
    for (double& value : values) value /= options_.temperature;
    const double greatest = *std::max_element(values.begin(), values.end());
    const size_t most =
        options_.top_k > 0 ? std::min(static_cast<size_t>(options_.top_k), values.size()) : values.size();
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::vector<double> weights;  // of those that are in order
    const auto weight = [&](size_t place) {
      const size_t done = weights.size();
      if (place == done) {
        const size_t end = std::min(most, kFirst + kGrowth * done);
        const auto likelier = [&](int64_t a, int64_t b) {
          return values[a] != values[b] ? values[a] > values[b] : a < b;
        };
        const auto from = order.begin() + static_cast<ptrdiff_t>(done);
        const auto to = order.begin() + static_cast<ptrdiff_t>(end);
        if (end <= kFirst) {
          std::partial_sort(from, to, order.end(), likelier);  // faster for so few
        } else {
          if (end < order.size()) std::nth_element(from, to, order.end(), likelier);
          std::sort(from, to, likelier);
        }
        for (size_t i = done; i < end; ++i) weights.push_back(std::exp(values[order[i]] - greatest));
      }
      return weights[place];
    };
    double all = 0;
    if (most == values.size()) {
      for (const double value : values) all += std::exp(value - greatest);
    } else {
      for (size_t i = 0; i < most; ++i) all += weight(i);
    }
    double before = all;
    size_t kept = most;
    if (options_.top_p < 1 || options_.min_p > 0) {
      before = 0;
      // Both filters keep the likeliest ones.
      for (kept = 0; kept < most; ++kept) {
        if (options_.top_p < 1 && before / all >= options_.top_p) break;
        if (weight(kept) < options_.min_p) break;
        before += weight(kept);
      }
    }
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      sum += weight(i);
      if (uniform * before < sum) return order[i];
    }
    return order[kept - 1];
  }

  static constexpr size_t kFirst = 256, kGrowth = 31;
  SamplingOptions options_;
  Philox random_;
  std::unordered_set<int64_t> seen_;
};

}  // namespace etcuda
