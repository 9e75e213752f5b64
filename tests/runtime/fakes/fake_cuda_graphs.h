// CUDA graphs of the fake driver: what is issued on a stream that captures is kept and done at each launch.
#pragma once

#include <cstddef>
#include <functional>

namespace fake_cuda {

using Work = std::function<void(void* stream)>;

// Keeps `work` if the stream captures; else the caller does it now.
bool recorded(void* stream, Work work);
// Waiting for a stream that captures, or for the device while one does, is an error that spoils the capture.
bool spoils_capture(void* stream);
bool spoils_any_capture();

size_t live_graphs();  // captured or ready to be launched
size_t graph_launches();

}  // namespace fake_cuda
