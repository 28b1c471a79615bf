#include "cli/verbs.h"

int main(int argc, char** argv) { return fathom::cli::run(argc, argv); }
