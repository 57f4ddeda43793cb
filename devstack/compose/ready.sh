#!/bin/bash
# `ready PORT`: exit status 0 if the process in this container answers GET /readyz with 200. Starts no interpreter of
# Python: it runs every few seconds in each container. The caller bounds its time.
set -u
exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r _ status _ <&3
[[ $status == 200 ]]
