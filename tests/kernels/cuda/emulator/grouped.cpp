// The kernel in grouped.cu, emulated. Arguments: CTAs, rows of x, rows of the output, seed; files: x, order,
// tiles, qdata, scale, zero, out, which the kernel writes.

#include "memory.h"
#include "wgmma.cuh"
#include SOURCE
#include "launch.h"

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, 4);
  Memory x(arguments.file(0)), order(arguments.file(1)), tiles(arguments.file(2)), qdata(arguments.file(3)),
      scale(arguments.file(4)), zero(arguments.file(5)), out(arguments.file(6));
  emulator::launch(arguments[0], 1, kThreads, arguments[3], false, [&] {
    NAME((const u8*)x.data(), (const int*)order.data(), (const int*)tiles.data(), (const u8*)qdata.data(),
         (const u8*)scale.data(), (const u8*)zero.data(), (u16*)out.data(), arguments[1], arguments[2],
         nullptr, nullptr);
  });
  out.save();
}
