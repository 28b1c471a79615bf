// Transport `mpi`: the ranks are processes that mpirun or srun started, on one machine or many.
#pragma once
#include <memory>

#include "tensor/transport.h"

namespace fathom::mpi {

/// Whether this process was started as one of several ranks (by the environment that mpirun, srun and their like
/// leave).
bool launched();

/// Joins the other ranks, once a process; destroying it leaves them (all ranks do). A rank that fails prints its
/// sentence on standard error and ends all of them with exit code 2. Errors: those of Library::start; "mpi.alone"
/// (started as several, but MPI knows of one).
Result<std::shared_ptr<tensor::Transport>> make_mpi_transport();

}  // namespace fathom::mpi
