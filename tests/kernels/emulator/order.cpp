// The kernel in order.cu, emulated. Arguments: blocks, programs a row, tokens, rows, seed; files: x, ordered,
// factor, tickets, of which the last three are written.

#include "memory.h"
#include "products.cuh"
#include SOURCE
#include "launch.h"

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, 5);
  Memory x(arguments.file(0)), ordered(arguments.file(1)), factor(arguments.file(2)),
      tickets(arguments.file(3));
  emulator::launch(arguments[0], arguments[1], THREADS, arguments[4], false, [&] {
    NAME((const Bits*)x.data(), (u16*)ordered.data(), (float*)factor.data(), (int*)tickets.data(),
         arguments[2] + 2, arguments[3], nullptr, nullptr);
  });
  for (Memory* each : {&ordered, &factor, &tickets}) each->save();
}
