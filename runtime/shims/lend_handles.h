// While one lives on a thread, a new handle of a tensor is that tensor's own handle.
//
// AOTInductor takes a handle of its own of each constant that its user manages and never deletes it. Lent the
// handle that the delegate owns, it has nothing to leak.
#pragma once

namespace etcuda {

class LendHandles {
 public:
  LendHandles();
  ~LendHandles();
  LendHandles(const LendHandles&) = delete;
  LendHandles& operator=(const LendHandles&) = delete;
};

}  // namespace etcuda
