// The kernel in gemm.cu, emulated. Arguments: CTAs, rows of the weight, tokens, rows of x, seed, 1 for CTAs
// that run at the same time; files: x, factor, qdata, scale, zero, bias, out, workspace, semaphores, of which
// the kernel writes the last three.

#include "memory.h"
#include "wgmma.cuh"
#include SOURCE
#include "launch.h"

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, 6);
  Memory x(arguments.file(0)), factor(arguments.file(1)), qdata(arguments.file(2)), scale(arguments.file(3)),
      zero(arguments.file(4)), bias(arguments.file(5)), out(arguments.file(6)), workspace(arguments.file(7)),
      semaphores(arguments.file(8));
  emulator::launch(arguments[0], 1, kThreads, arguments[4], arguments[5] != 0, [&] {
    NAME((const u8*)x.data(), (const float*)factor.data(), (const u8*)qdata.data(), (const u8*)scale.data(),
         (const u8*)zero.data(), (const Bias*)bias.data(), (Out*)out.data(), (float*)workspace.data(),
         (int*)semaphores.data(), arguments[1] + 2, arguments[2] + 2, arguments[3], nullptr, nullptr);
  });
  for (Memory* each : {&out, &workspace, &semaphores}) each->save();
}
