// The kernels in reorder.cu and reorder_as_is.cu, emulated. Arguments: rows, CTAs of a row, tokens, rows of
// the result, seed, and with a gate the strides of gate and up; files: x, or gate and up; reordered, factor,
// semaphores, which the kernel writes.

#include "memory.h"
#include "wgmma.cuh"
#include SOURCE
#include "launch.h"

int main(int argc, char** argv) {
#if GATE
  const Arguments arguments(argc, argv, 7);
  constexpr int kFirst = 2;
#else
  const Arguments arguments(argc, argv, 5);
  constexpr int kFirst = 1;
#endif
  Memory x(arguments.file(0)), up(arguments.file(kFirst - 1)), reordered(arguments.file(kFirst)),
      factor(arguments.file(kFirst + 1)), semaphores(arguments.file(kFirst + 2));
  emulator::launch(arguments[0], arguments[1], THREADS, arguments[4], false, [&] {
#if GATE
    NAME((const Bits*)x.data(), (const Bits*)up.data(), (u16*)reordered.data(), (float*)factor.data(),
         (int*)semaphores.data(), arguments[5], arguments[6], arguments[2] + 2, arguments[3], nullptr,
         nullptr);
#else
    NAME((const Bits*)x.data(), (u16*)reordered.data(), (float*)factor.data(), (int*)semaphores.data(),
         arguments[2] + 2, arguments[3], nullptr, nullptr);
#endif
  });
  for (Memory* each : {&reordered, &factor, &semaphores}) each->save();
}
