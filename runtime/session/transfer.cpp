#include "session/transfer.h"

#include <vector>

#include "cuda/copy.h"

namespace etcuda {

StoragePtr Transfer::allocate_like(const Storage& like) {
  return allocate_persistent_storage(like.nbytes, like.device_type, like.device_index);
}

// Streams are made when first needed: on the host there are none.
template <typename Body>
void Transfer::on_device(int device, const Body& body) {
  std::unique_ptr<Stream>& stream = streams_[device];
  if (stream == nullptr) stream = std::make_unique<Stream>(device);
  const StreamScope scope(*stream);
  try {
    body();
  } catch (...) {
    stream->synchronize();
    throw;
  }
  stream->synchronize();
}

void Transfer::read(void* to, const Storage& from) {
  const auto body = [&] { copy_bytes(to, kHost, from.data, from.device_type, from.nbytes); };
  if (from.device_type == kCuda) return on_device(from.device_index, body);
  body();
}

void Transfer::write(const Storage& to, const void* from) {
  const auto body = [&] { copy_bytes(to.data, to.device_type, from, kHost, to.nbytes); };
  if (to.device_type == kCuda) return on_device(to.device_index, body);
  body();
}

void Transfer::copy(const Storage& to, const Storage& from) {
  if (from.device_type == kHost) return write(to, from.data);
  if (to.device_type == kHost) return read(to.data, from);
  if (to.device_index != from.device_index) {
    std::vector<char> through(from.nbytes);
    read(through.data(), from);
    return write(to, through.data());
  }
  on_device(to.device_index, [&] { copy_bytes(to.data, kCuda, from.data, kCuda, to.nbytes); });
}

void Transfer::fill(const Storage& to, const State& state) {
  if (state.initial()) return write(to, state.initial()->data());
  const auto body = [&] { zero_bytes(to.data, to.device_type, to.nbytes); };
  if (to.device_type == kCuda) return on_device(to.device_index, body);
  body();
}

void Transfer::copy_view(const Tensor& to, const Tensor& from) {
  if (to.device_type() == kCuda) return on_device(to.device_index(), [&] { copy_tensor(to, from); });
  copy_tensor(to, from);
}

}  // namespace etcuda
