// To which lengths a session can be taken back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace etcuda {

// What the caches of a sequence still hold. Keys and values stand at their positions, so that a sequence that
// is taken back needs nothing but to be shorter. Two things are lost meanwhile: a ring overwrites the keys of
// the tokens in front of its window, and a recurrent state that is not kept is gone. From the first token on,
// everything can be filled anew.
class KeptTokens {
 public:
  // `max_rollback`: tokens by which a sequence can be taken back, INT64_MAX for any number. `state_slots`:
  // recurrent states that are kept, of the last tokens; 0 where `max_rollback` says it all.
  KeptTokens(int64_t max_rollback, int64_t state_slots)
      : max_rollback_(max_rollback), state_slots_(state_slots) {}

  // The least number of tokens, beside none, to which the sequence can be taken back.
  int64_t oldest() const { return oldest_; }

  // The sequence has no tokens.
  void clear() { oldest_ = written_ = 0; }

  // The sequence has `length` tokens now. `each`: a recurrent state was kept behind each token that was
  // appended, and not behind the last one alone.
  void note(int64_t length, bool each) {
    written_ = std::max(written_, length);
    if (state_slots_ != 0 && !each) oldest_ = length;
    oldest_ = std::max(oldest_, written_ - (state_slots_ != 0 ? state_slots_ - 1 : max_rollback_));
  }

  // Throws std::runtime_error unless a sequence of `length` tokens can go on, as it cannot where what was
  // computed ahead of it was not read.
  void require(int64_t length) const {
    if (length == 0 || length >= oldest_) return;
    throw std::runtime_error("the session: expected what goes on behind its " + std::to_string(length) +
                             " tokens, got caches of more, which were computed ahead and not read. Call "
                             "advance() with all tokens, "
                             "or export with --rollback 2 or more.");
  }

  // Throws std::invalid_argument unless a sequence of `length` tokens can be taken back by `count`.
  void check(int64_t count, int64_t length) const {
    const auto refuse = [](int64_t most, int64_t got, const std::string& why) {
      throw std::invalid_argument("rollback: expected at most " + std::to_string(most) + " tokens, got " +
                                  std::to_string(got) + ": " + why);
    };
    if (count < 0) {
      throw std::invalid_argument("rollback: expected 0 or more tokens, got " + std::to_string(count) + ".");
    }
    if (count > length) refuse(length, count, "the session holds no more.");
    if (count == 0 || count == length || length - count >= oldest_) return;
    const int64_t most = std::max<int64_t>(0, length - oldest_);
    if (state_slots_ != 0) {
      refuse(most, count,
             "recurrent states are kept of the last " + std::to_string(state_slots_) +
                 " tokens, and of a prompt's call behind its last token alone. Fork the session before, or "
                 "export with a greater --rollback.");
    }
    if (max_rollback_ == 0) {
      refuse(most, count,
             "recurrent states are kept of the last token alone. Export with --rollback 15, or less, or fork "
             "the session before.");
    }
    refuse(
        most, count,
        "the rings of sliding layers have lost the keys of earlier ones. Fork the session before, or export "
        "with a greater --chunk.");
  }

 private:
  int64_t max_rollback_, state_slots_;
  int64_t oldest_ = 0;
  int64_t written_ = 0;  // tokens that were ever written since the caches were empty
};

}  // namespace etcuda
