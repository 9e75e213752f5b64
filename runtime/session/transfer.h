// Copies of whole storages between calls: complete when they return, from or to any device.
#pragma once

#include <map>
#include <memory>

#include "cuda/stream.h"
#include "weights/pool.h"

namespace etcuda {

class Transfer {
 public:
  // A new storage of `nbytes` bytes beside `like`.
  static StoragePtr allocate_like(const Storage& like);

  void read(void* to, const Storage& from);
  void write(const Storage& to, const void* from);
  void copy(const Storage& to, const Storage& from);
  // The initial content of a state.
  void fill(const Storage& to, const State& state);
  // Both views on one device.
  void copy_view(const Tensor& to, const Tensor& from);

 private:
  template <typename Body>
  void on_device(int device, const Body& body);

  std::map<int, std::unique_ptr<Stream>> streams_;  // by device
};

}  // namespace etcuda
