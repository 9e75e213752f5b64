#include "check.h"

int main(int argc, char** argv) {
  return etcuda_test::run_tests(argc, argv);
}
